"""Files of records that are told by their ids, such as principles and cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from whelp.errors import DataError
from whelp.text.formats.conversations import Problem
from whelp.text.formats.lines import Source


class Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=Named)


def read_by_id(source: Source, read: Callable[[dict[str, Any]], N], kind: str, keys: str) -> tuple[N, ...]:
    """Every record of `source` by `read`, which raises `Problem`. `kind` is what one is called, `keys` what it needs, in words.

    Raises DataError that names every broken one by its line.
    """
    found: dict[str, N] = {}
    problems: list[str] = []
    for row in source.rows:
        try:
            if row.problem:
                raise Problem(row.problem)
            if not isinstance(row.value, dict):
                raise Problem(f"is no {kind}; expected the keys {keys}")
            record = read(row.value)
            if record.id in found:
                raise Problem(f"has the id {record.id!r} of an earlier {kind}")
            found[record.id] = record
        except Problem as problem:
            problems.append(f"  {source.name}:{row.line}: {problem}")
    if problems:
        raise DataError("\n".join([f"{source.name}: {len(problems)} {kind}s cannot be used:", *problems]))
    if not found:
        raise DataError(f"{source.name}: is empty; expected {kind}s with {keys}")
    return tuple(found.values())
