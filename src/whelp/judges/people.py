"""What people said of two answers, as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from whelp.judges.base import Comparison, Opinion
from whelp.text.formats import prompt_hash
from whelp.types import Ranking


class PeopleJudge:
    """Knows the pairs of some rankings, by their texts; of a pair that several people judged, the mean. It says nothing of
    others."""

    def __init__(self, rankings: Sequence[Ranking], source: str):
        self.name = f"people, by {source}"
        self.said: dict[tuple[str, str, str], list[float]] = {}
        for ranking in rankings:
            for pair in ranking.pairs():
                self._add(ranking, pair.chosen, pair.rejected, pair.probability)
                self._add(ranking, pair.rejected, pair.chosen, 1.0 - pair.probability)

    def _add(self, ranking: Ranking, first: str, second: str, probability: float) -> None:
        key = (prompt_hash(ranking.prompt.messages), first.strip(), second.strip())
        self.said.setdefault(key, []).append(probability)

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        for place, one in enumerate(comparisons):
            said = self.said.get((prompt_hash(one.messages), one.first.strip(), one.second.strip()))
            yield place, Opinion(fmean(said)) if said else None
