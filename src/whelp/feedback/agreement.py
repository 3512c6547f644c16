"""How much people agree, and what of their votes is habit. Nothing is said (None) where too little is known.

Votes on K completions count as the K(K-1)/2 pairs in them. Intervals draw whole items, whose pairs hang together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from whelp.feedback.judgements import Vote
from whelp.types import Estimate

Table = NDArray[np.float64]
DRAWS = 2000
IDLE_SECONDS = 600.0
"""Who was longer at an item has been away."""
OUTCOMES = (-1, 0, 1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of an item, `first` before `second` in the database, as one person judged them."""

    item: int
    user: str
    first: int
    second: int
    outcome: int
    """1: the first is better, -1: the second, 0: a tie."""
    shown_first: int
    """1: the first stood before the second, -1: behind it."""


@dataclass(frozen=True, slots=True)
class Habits:
    """One person's votes: how often the better of two was the one that stood first, or the longer one."""

    position: Estimate | None
    length: Estimate | None
    length_of_others: Estimate | None
    gold: Estimate | None
    """How often they were right about pairs of which the answer is known."""
    votes: int
    seconds: float
    """The median of a vote."""
    per_hour: float | None
    """Votes in an hour at work."""
    hasty: int
    """Votes that came sooner than the project's least time."""


def pairs_of(votes: Iterable[Vote]) -> list[Pair]:
    found = []
    for vote in votes:
        place = {completion: place for place, completion in enumerate(vote.order)}
        for a, b in combinations(range(len(vote.ranks)), 2):
            outcome = int(np.sign(vote.ranks[b] - vote.ranks[a]))
            found.append(Pair(vote.item, vote.user, a, b, outcome, 1 if place[a] < place[b] else -1))
    return found


def alpha(pairs: Sequence[Pair]) -> Estimate | None:
    """Krippendorff's alpha of the outcomes -1, 0, 1 at interval distance (Krippendorff 2018, section 12.3): 1 is full agreement,
    0 what chance gives. None where no pair was judged by two people, or all outcomes are the same, so that chance agrees too."""
    tables: dict[int, Table] = defaultdict(lambda: np.zeros((3, 3)))
    for (item, *_), judged in _by_pair(pairs).items():
        for a, b in permutations(judged, 2):
            tables[item][OUTCOMES.index(a.outcome), OUTCOMES.index(b.outcome)] += 1.0 / (len(judged) - 1)
    distance = np.subtract.outer(OUTCOMES, OUTCOMES).astype(float) ** 2

    def statistic(coincidences: Table) -> Table:
        table = coincidences.reshape(-1, 3, 3)
        margin = table.sum(2)
        total = margin.sum(1)
        observed, expected = (table * distance).sum((1, 2)), np.einsum("dc,dk,ck->d", margin, margin, distance)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1.0 - (total - 1.0) * observed / expected

    return _estimate([table.ravel() for table in tables.values()], statistic)


def agreement(pairs: Sequence[Pair]) -> Estimate | None:
    """How often two people prefer the same of two completions, where both prefer one. None where no two did."""
    counts = defaultdict(lambda: np.zeros(2))
    for (item, *_), judged in _by_pair(pairs).items():
        for a, b in combinations(judged, 2):
            if a.outcome and b.outcome:
                counts[item] += (a.outcome == b.outcome, 1.0)
    return _estimate(counts.values(), _share)


def matrix(pairs: Sequence[Pair]) -> dict[tuple[str, str], Estimate | None]:
    """`agreement` of each two people, by their names in order."""
    users = sorted({pair.user for pair in pairs})
    return {(a, b): agreement([pair for pair in pairs if pair.user in (a, b)]) for a, b in combinations(users, 2)}


def habits(
    votes: Sequence[Vote],
    words: Mapping[int, Sequence[int]],
    gold: Mapping[int, Sequence[int]],
    min_seconds: float = 0.0,
) -> dict[str, Habits]:
    """Of each person. `words`: of each item's completions; `gold`: ranks that are known to be right."""
    pairs = [pair for pair in pairs_of(votes) if pair.outcome]
    result = {}
    for user in sorted({vote.user for vote in votes}):
        mine = [vote for vote in votes if vote.user == user]
        at_work = sum(min(vote.seconds, IDLE_SECONDS) for vote in mine)
        own = [pair for pair in pairs if pair.user == user]
        result[user] = Habits(
            position=_rate((pair.item, pair.outcome == pair.shown_first) for pair in own),
            length=_prefers_longer(own, words),
            length_of_others=_prefers_longer([pair for pair in pairs if pair.user != user], words),
            gold=_rate(
                (pair.item, pair.outcome * (gold[pair.item][pair.second] - gold[pair.item][pair.first]) > 0)
                for pair in pairs_of(mine)
                if pair.item in gold and gold[pair.item][pair.first] != gold[pair.item][pair.second]
            ),
            votes=len(mine),
            seconds=median(vote.seconds for vote in mine),
            per_hour=3600.0 * len(mine) / at_work if at_work else None,
            hasty=sum(vote.seconds < min_seconds for vote in mine),
        )
    return result


def _prefers_longer(pairs: Iterable[Pair], words: Mapping[int, Sequence[int]]) -> Estimate | None:
    lengths = ((pair, words[pair.item][pair.first] - words[pair.item][pair.second]) for pair in pairs)
    return _rate((pair.item, pair.outcome * longer > 0) for pair, longer in lengths if longer)


def _by_pair(pairs: Iterable[Pair]) -> dict[tuple[int, int, int], list[Pair]]:
    """Those that two people or more have judged."""
    found: dict[tuple[int, int, int], list[Pair]] = defaultdict(list)
    for pair in pairs:
        found[pair.item, pair.first, pair.second].append(pair)
    return {key: judged for key, judged in found.items() if len(judged) > 1}


def _rate(hits: Iterable[tuple[int, bool]]) -> Estimate | None:
    """Share of the hits, each of an item."""
    counts = defaultdict(lambda: np.zeros(2))
    for item, is_hit in hits:
        counts[item] += (is_hit, 1.0)
    return _estimate(counts.values(), _share)


def _share(sums: Table) -> Table:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 0] / sums[:, 1]


def _estimate(rows: Iterable[Table], statistic: Callable[[Table], Table]) -> Estimate | None:
    """`statistic` of the sum of the rows, one for each item, with the percentile interval of a bootstrap over items."""
    table = np.array(list(rows))
    if not table.size or not np.isfinite(value := statistic(table.sum(0, keepdims=True))[0]):
        return None
    drawn = np.random.default_rng(0).integers(len(table), size=(DRAWS, len(table)))
    times = np.apply_along_axis(np.bincount, 1, drawn, minlength=len(table))
    values = statistic(times @ table)
    low, high = np.quantile(values[np.isfinite(values)], (0.025, 0.975))
    return Estimate(float(value), float(low), float(high), len(table))
