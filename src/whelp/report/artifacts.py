"""Reading what a run left behind, without ever failing: what is damaged is noted and left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

Json = Mapping[str, Any]

# Control characters are shown as their pictures (U+2400...): a browser would drop them or, worse, obey them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


@final
@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval and the number of units behind it; None where it was not recorded."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p_value: float | None = None
    """of a difference being zero"""
    prompts_needed: int | None = None
    """to see a difference of 3 points"""

    @property
    def is_known(self) -> bool:
        """True when there is a mean."""
        return self.mean is not None

    @property
    def differs(self) -> bool:
        """True of a difference whose interval does not hold zero, and whose p-value, if there is one, is below 5%."""
        is_clear = self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)
        return is_clear and (self.p_value is None or self.p_value < 0.05)

    @property
    def has_bounds(self) -> bool:
        """True when both ends of the interval are there."""
        return self.low is not None and self.high is not None


@final
@dataclass(frozen=True)
class Artifacts:
    """The files of one run directory, by their path inside it.

    A file that is not there reads as empty. One that cannot be read or parsed does too, and `problems` says why.
    """

    root: Path
    problems: list[str] = field(default_factory=list)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def table(self, name: str) -> Json:
        """The JSON object stored in a file."""
        data = self._bytes(name)
        if data is None:
            return {}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{name} is not valid JSON ({error}).")
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{name} holds a JSON {type(value).__name__}, expected an object.")
            return {}
        return value

    def lines(self, name: str) -> tuple[Json, ...]:
        """The JSON objects of a file of lines. A last line torn by a kill is left out silently, as runs do."""
        data = self._bytes(name)
        rows = [] if data is None else data.split(b"\n")
        found, bad = [], []
        for number, row in enumerate(rows, start=1):
            if not row.strip():
                continue
            try:
                value = json.loads(row)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                found.append(value)
            elif number < len(rows):
                bad.append(number)
        if bad:
            self.problems.append(
                f"{name}: {len(bad)} lines are no JSON objects and were left out, first line {bad[0]}."
            )
        return tuple(found)

    def _bytes(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror}).")
            return None


def number(value: Any) -> float | None:
    """A float, or None for anything else and for what is too big to mean anything (sums of it would be infinite)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None  # False for NaN


def whole(value: Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def text(value: Any) -> str:
    """Any JSON value as text that is safe to show: control characters become visible."""
    if value is None:
        return ""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return shown.replace("\r\n", "\n").translate(_PICTURES)


def table(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def interval(value: Any) -> Interval:
    found = table(value)
    return Interval(
        number(found.get("mean")),
        number(found.get("low")),
        number(found.get("high")),
        whole(found.get("n")),
        number(found.get("p_value")),
        whole(found.get("prompts_needed")),
    )
