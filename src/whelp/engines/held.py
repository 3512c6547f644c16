"""Sequences with what was computed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from whelp.engines.base import Held
from whelp.types import Sequences


class LocalHeld:
    """Sequences with the outputs of every trunk that was asked for, row by row."""

    def __init__(self, sequences: Sequences, cache: dict[str, dict[int, Tensor]], rows: Sequence[int]):
        self.sequences = sequences
        self.cache = cache
        self.rows = rows
        self.total = len(rows)
        """How many were asked about, wherever they are computed."""

    def select(self, rows: Sequence[int]) -> LocalHeld:
        return LocalHeld(self.sequences.select(rows), self.cache, [self.rows[r] for r in rows])


H = TypeVar("H")


def own(held: Held, kind: type[H]) -> H:
    """What `hold` of the same engine gave; nothing else has its activations."""
    if not isinstance(held, kind):
        raise TypeError(f"held: expected what hold of the same engine gives, got {type(held).__name__}.")
    return held
