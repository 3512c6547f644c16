"""A constitution: a list of principles, each with what a model is asked under it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from whelp.text.formats.conversations import Problem, text_of
from whelp.text.formats.lines import read_source
from whelp.text.formats.records import read_by_id
from whelp.types import Principle

VALUES: tuple[str, ...] = get_args(get_type_hints(Principle)["value"])
KEYS = tuple(field.name for field in fields(Principle))


def read_principles(path: str | Path) -> tuple[Principle, ...]:
    """The principles of a file or of `builtin:<name>`. Raises DataError that names every broken one by its line."""
    return read_by_id(read_source(path), _read, "principle", ", ".join(KEYS))


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


def _read(given: dict[str, Any]) -> Principle:
    _refuse_other_keys(list(given))
    texts: dict[str, Any] = {key: text_of(given[key], key) for key in KEYS}
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
