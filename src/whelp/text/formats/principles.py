"""A constitution: a list of principles, each with what a model is asked under it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from whelp.errors import DataError
from whelp.text.formats.conversations import Problem, text_of
from whelp.text.formats.lines import Row, read_source
from whelp.types import Principle

VALUES: tuple[str, ...] = get_args(get_type_hints(Principle)["value"])
KEYS = tuple(field.name for field in fields(Principle))


def read_principles(path: str | Path) -> tuple[Principle, ...]:
    """The principles of a file or of `builtin:<name>`. Raises DataError that names every broken one by its line."""
    source = read_source(path)
    principles: dict[str, Principle] = {}
    problems: list[str] = []
    for row in source.rows:
        try:
            principle = _read(row)
            if principle.id in principles:
                raise Problem(f"has the id {principle.id!r} of an earlier principle")
            principles[principle.id] = principle
        except Problem as problem:
            problems.append(f"  {source.name}:{row.line}: {problem}")
    if problems:
        raise DataError("\n".join([f"{source.name}: {len(problems)} principles cannot be used:", *problems]))
    if not principles:
        raise DataError(f"{source.name}: is empty; expected principles with {', '.join(KEYS)}")
    return tuple(principles.values())


def doubts(principles: Sequence[Principle]) -> list[str]:
    """What can be used and will not work well, a sentence each."""
    found = [
        f"{one.id}: comparison does not name A and B, between which a judge is to choose"
        for one in principles
        if not {"A", "B"} <= set(re.findall(r"\w+", one.comparison))
    ]
    for key in ("principle", "critique", "revision", "comparison"):
        first: dict[str, str] = {}
        for one in principles:
            said = " ".join(getattr(one, key).casefold().split())
            if said in first:
                found.append(f"{one.id}: {key} is that of {first[said]}, which is then drawn twice as often")
            first.setdefault(said, one.id)
    return found


def _read(row: Row) -> Principle:
    if row.problem:
        raise Problem(row.problem)
    if not isinstance(row.value, dict):
        raise Problem(f"is no principle; expected the keys {', '.join(KEYS)}")
    _refuse_other_keys(list(row.value))
    texts: dict[str, Any] = {key: text_of(row.value[key], key) for key in KEYS}
    if texts["value"] not in VALUES:
        raise Problem(f"has the value {texts['value']!r}; expected one of {', '.join(VALUES)}")
    return Principle(**texts)


def _refuse_other_keys(given: Sequence[str]) -> None:
    missing, unknown = [k for k in KEYS if k not in given], [k for k in given if k not in KEYS]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has the unknown {', '.join(unknown)}"] * bool(
            unknown
        )
        raise Problem(" and ".join(parts))
