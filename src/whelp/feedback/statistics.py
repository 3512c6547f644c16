"""A project in numbers, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whelp.feedback import agreement
from whelp.feedback.agreement import Habits
from whelp.feedback.store import Store
from whelp.feedback.verdicts import Verdicts
from whelp.types import Estimate

PUBLISHED = "63% to 77%"
"""How often two people agree: from Bai et al. 2022 over Ouyang et al. 2022 to Stiennon et al. 2020."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """None where too little is known."""

    items: int
    judged: int
    """Items with a vote."""
    votes: int
    verdicts: int
    waiting: int
    """Items on which people are at odds, or that somebody flagged, without a verdict."""
    agreement: Estimate | None
    alpha: Estimate | None
    habits: Mapping[str, Habits]
    matrix: Mapping[tuple[str, str], Estimate | None]

    @property
    def why_no_alpha(self) -> str:
        """Why there is none."""
        return "nothing was judged twice" if self.agreement is None else "undefined: all is judged alike"


def statistics(store: Store, project: int) -> Statistics:
    """Raises `DataError` where there is no such project."""
    rules, items, votes = store.rules(project), store.items(project), store.votes(project)
    pairs = agreement.pairs_of(votes)
    words = {item.id: [len(text.split()) for text in item.completions] for item in items}
    gold = {item.id: item.gold for item in items if item.gold is not None}
    return Statistics(
        items=len(items),
        judged=len({vote.item for vote in votes}),
        votes=len(votes),
        verdicts=len(store.votes(project, is_verdict=True)),
        waiting=Verdicts(store).waiting(project),
        agreement=agreement.agreement(pairs),
        alpha=agreement.alpha(pairs),
        habits=agreement.habits(votes, words, gold, rules.min_seconds),
        matrix=agreement.matrix(pairs),
    )
