"""Which of two answers is better, by whoever is asked: the one home of that question.

A judge is asked in both orders and its two answers are averaged, so that a preference for the first place cancels; how strong it
was is kept (Bai et al. 2022, Constitutional AI, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from whelp.types import Message, Principle


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a conversation that ends with the user's turn, and by which principle they are compared."""

    id: str
    messages: tuple[Message, ...]
    first: str
    second: str
    principle: Principle

    def swapped(self) -> Comparison:
        return replace(self, first=self.second, second=self.first)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge said of a comparison in the order in which it was asked."""

    first: float
    """Probability that the first answer is better."""
    reasoning: str = ""
    cost: float = 0.0
    """In the endpoint's currency; 0 for a model that runs here."""


class Judge(Protocol):
    @property
    def name(self) -> str:
        """Which model, and which way of asking."""
        ...

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        """(place of the comparison, what the judge thinks), as they come; None where it said nothing that can be read."""
        ...


@dataclass(frozen=True, slots=True)
class Label:
    """A judge's word on a comparison, asked both ways round."""

    first: float
    """Probability that the first answer is better: the mean of both orders."""
    position_bias: float
    """How much more probable an answer is for standing first: 0 of a judge that reads, 0.5 of one that always says A."""
    opinions: tuple[Opinion, Opinion]
    """As given, and swapped."""


def tempered(probability: float, temperature: float) -> float:
    """With its log-odds divided by `temperature`."""
    if probability in (0.0, 1.0) or temperature == 1.0:
        return probability
    return 1.0 / (1.0 + math.exp(math.log((1.0 - probability) / probability) / temperature))


def labels(
    judge: Judge, comparisons: Sequence[Comparison], bounds: tuple[float, float] = (0.0, 1.0)
) -> Iterator[tuple[int, Label | None]]:
    """(place, label) of each comparison once both its orders were judged; None where one of them could not be read. `bounds`:
    between which a probability is kept; Bai et al. hold those of a chain of thought between 0.4 and 0.6, which makes a judge too
    sure."""
    both = [one for comparison in comparisons for one in (comparison, comparison.swapped())]
    heard: dict[int, Opinion | None] = {}
    for place, opinion in judge.opinions(both):
        heard[place] = opinion
        if place ^ 1 in heard:
            index = place // 2
            yield index, _label(heard.pop(2 * index), heard.pop(2 * index + 1), bounds)


def _label(given: Opinion | None, swapped: Opinion | None, bounds: tuple[float, float]) -> Label | None:
    if given is None or swapped is None:
        return None
    low, high = bounds

    def kept(probability: float) -> float:
        return min(max(probability, low), high)

    one, other = kept(given.first), kept(swapped.first)
    return Label(kept((one + 1.0 - other) / 2.0), (one + other - 1.0) / 2.0, (given, swapped))
