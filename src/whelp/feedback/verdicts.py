"""What people are at odds about, and who settles it: an adjudicator sees what was said, and their verdict counts alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from whelp.feedback.judgements import Task
from whelp.feedback.queue import assign, judged, open_before, project_of, task_of
from whelp.feedback.schema import Assignment, Item, Revision
from whelp.feedback.store import Store


@dataclass(frozen=True, slots=True)
class Said:
    """What one person said about a task; `ranks` are those of its completions as they stand there, None for a flag."""

    kind: Literal["vote", "flag"]
    ranks: tuple[int, ...] | None
    strength: int | None
    is_both_bad: bool
    comment: str


def opposed(rankings: Sequence[Sequence[int]]) -> float:
    """The share of the pairs of completions of which some prefer the one and some the other. A tie is at odds with nobody."""
    if not rankings:
        return 0.0
    pairs = list(combinations(range(len(rankings[0])), 2))
    at_odds = [any(r[a] < r[b] for r in rankings) and any(r[a] > r[b] for r in rankings) for a, b in pairs]
    return sum(at_odds) / len(pairs)


class Verdicts:
    """The disputes of a store."""

    def __init__(self, store: Store):
        self.store = store

    def waiting(self, project: int) -> int:
        """How many items wait for a verdict."""
        with self.store.reading() as session:
            return len(_disputed(session, project))

    def take(self, project: int, user: int) -> tuple[Task, list[Said]] | None:
        """What the user is to settle now, and what was said about it: what is open before them, or else what people are most at
        odds about. None: there is nothing that nobody else is at."""
        now = self.store.clock()
        with self.store.writing(user) as session:
            lease = project_of(session, project).lease_seconds
            said = _said(session, project)
            for assignment, item in open_before(session, project, user, is_verdict=True):
                if _is_free(session, item.id, user, now):
                    assignment.expires_at = now + lease
                    return task_of(assignment, item), _as_shown(said[item.id], assignment.order)
            for id in _disputed(session, project):
                item = session.get_one(Item, id, with_for_update=True)
                met = select(Assignment.id).where(
                    Assignment.item_id == id, Assignment.user_id == user, Assignment.is_verdict
                )
                if session.scalar(met) is None and _is_free(session, id, user, now):
                    assignment = assign(session, self.store.rng, item, user, now, lease, is_verdict=True)
                    return task_of(assignment, item), _as_shown(said[id], assignment.order)
        return None


def _is_free(session: Session, item: int, user: int, now: float) -> bool:
    """Whether no other adjudicator has settled the item or is at it."""
    is_at_it = or_(
        Assignment.state.in_(("vote", "flag")), and_(Assignment.state == "open", Assignment.expires_at > now)
    )
    others = select(Assignment.id).where(Assignment.item_id == item, Assignment.is_verdict, is_at_it)
    return session.scalar(others.where(Assignment.user_id != user).limit(1)) is None


def _said(session: Session, project: int) -> dict[int, list[Revision]]:
    """The votes and flags on each item."""
    found: dict[int, list[Revision]] = defaultdict(list)
    query = judged(project).where(Assignment.state.in_(("vote", "flag"))).order_by(Revision.id)
    for revision, assignment in session.execute(query):
        found[assignment.item_id].append(revision)
    return found


def _disputed(session: Session, project: int) -> list[int]:
    """Items that somebody flagged, then those of opposed votes, the most opposed first; none that is settled or whose answer is
    known."""
    open_ones = select(Item.id).where(Item.project_id == project, Item.is_open, ~Item.is_gold)
    is_open, weight = set(session.scalars(open_ones)), {}
    for item, revisions in _said(session, project).items():
        flags = sum(revision.kind == "flag" for revision in revisions)
        weight[item] = flags, opposed([revision.ranks for revision in revisions if revision.ranks is not None])
    disputed = [item for item, much in weight.items() if any(much) and item in is_open]
    return sorted(disputed, key=lambda item: weight[item], reverse=True)


def _as_shown(revisions: Sequence[Revision], order: Sequence[int]) -> list[Said]:
    return [
        Said(
            revision.kind,  # pyright: ignore[reportArgumentType]
            None if revision.ranks is None else tuple(revision.ranks[completion] for completion in order),
            revision.strength,
            revision.is_both_bad,
            revision.comment,
        )
        for revision in revisions
    ]
