"""The pieces of a transaction on the queue: whose turn it is at what, and appending to what was said."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    Update,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session, aliased

from whelp.errors import DataError
from whelp.feedback.judgements import Judgement, NewItem, Task, dense, in_database, key_of
from whelp.feedback.schema import Assignment, Item, Project, Revision
from whelp.types import Message


def locks_rows(session: Session) -> bool:
    """False: on SQLite whoever writes is alone."""
    return session.get_bind().dialect.name != "sqlite"


def storable(text: str) -> str:
    """Without NUL, which PostgreSQL does not keep."""
    return text.replace("\x00", "")


def new_item(project: int, item: NewItem, now: float, shuffle: float) -> Item:
    return Item(
        project_id=project,
        key=key_of(item),
        messages=[message.as_dict() for message in item.messages],
        category=storable(item.category),
        completions=list(item.completions),
        sources=list(item.sources or [""] * len(item.completions)),
        gold=None if item.gold is None else list(dense(item.gold)),
        is_gold=item.gold is not None,
        shuffle=shuffle,
        place=shuffle if item.priority is None else -item.priority,
        created_at=now,
    )


def project_of(session: Session, project: int) -> Project:
    found = session.get(Project, project)
    if found is None:
        raise DataError(f"there is no project {project}; go back to the list.")
    return found


# Putting a statement together takes ten times as long as a database needs to run it: those of every vote are made once.

PROJECT, USER, ITEM, NOW = (bindparam(name) for name in ("project", "user", "item", "now"))


def is_claim(table: type[Assignment]) -> ColumnElement[bool]:
    """Whether somebody has judged the item or is at it `NOW`."""
    return and_(~table.is_verdict, or_(table.state == "vote", and_(table.state == "open", table.expires_at > NOW)))


@cache
def claims() -> ScalarSelect[int]:
    """How many there are on the item of the outer query `NOW`."""
    other = aliased(Assignment)
    of_it = select(func.count()).select_from(other).where(other.item_id == Item.id, is_claim(other))
    return of_it.scalar_subquery()


@cache
def _others() -> Select[int]:
    of_item = select(func.count()).select_from(Assignment).where(Assignment.item_id == ITEM, is_claim(Assignment))
    return of_item.where(Assignment.user_id != USER)


def others(session: Session, item: Item, user: int, now: float) -> int:
    """How many but the user have judged the item or are at it."""
    return session.scalar(_others(), {"item": item.id, "user": user, "now": now}) or 0


@cache
def _votes_by() -> Select[int]:
    of_user = (Assignment.user_id == USER, Assignment.project_id == PROJECT, ~Assignment.is_verdict)
    return select(func.count()).where(*of_user, Assignment.state == "vote")


def votes_by(session: Session, project: int, user: int) -> int:
    return session.scalar(_votes_by(), {"project": project, "user": user}) or 0


@cache
def _items_and_votes() -> Select[int, int]:
    return select(func.count(), func.sum(Item.votes)).where(Item.project_id == PROJECT, ~Item.is_gold)


def items_and_votes(session: Session, project: int) -> tuple[int, int]:
    """How many items there are and what was given to them, but for those whose answer is known."""
    items, votes = session.execute(_items_and_votes(), {"project": project}).one()
    return items, votes or 0


@cache
def _open_before() -> Select[Assignment, Item]:
    return (
        select(Assignment, Item)
        .join(Item, Item.id == Assignment.item_id)
        .where(Assignment.user_id == USER, Assignment.project_id == PROJECT)
        .where(Assignment.is_verdict == bindparam("is_verdict"), Assignment.state == "open", Item.is_open)
        .order_by(Assignment.shown_at.desc(), Assignment.id.desc())
    )


def open_before(session: Session, project: int, user: int, is_verdict: bool = False) -> Sequence[Row[Assignment, Item]]:
    """What the user has taken and not judged, what was shown last first."""
    return session.execute(_open_before(), {"project": project, "user": user, "is_verdict": is_verdict}).all()


def assign(
    session: Session, rng: random.Random, item: Item, user: int, now: float, lease: float, is_verdict: bool = False
) -> Assignment:
    """The item before the user, in an order that is drawn now."""
    order = list(range(len(item.completions)))
    rng.shuffle(order)
    assignment = Assignment(
        project_id=item.project_id,
        item_id=item.id,
        user_id=user,
        is_verdict=is_verdict,
        order=order,
        shown_at=now,
        expires_at=now + lease,
        state="open",
        revisions=0,
    )
    session.add(assignment)
    session.flush()
    return assignment


@cache
def _next(is_gold: bool | None) -> Select[Item]:
    met = select(Assignment.item_id).where(
        Assignment.user_id == USER, Assignment.project_id == PROJECT, ~Assignment.is_verdict
    )
    is_free = or_(Item.is_gold, claims() < bindparam("overlap"))
    return (
        select(Item)
        .where(Item.project_id == PROJECT, Item.is_open, ~Item.is_full, Item.id.not_in(met), is_free)
        .where(true() if is_gold is None else Item.is_gold == is_gold)
        .order_by(Item.place, Item.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Item)
    )


def next_item(session: Session, rules: Project, user: int, now: float, is_gold: bool | None) -> Item | None:
    """The first item in the queue that the user has not met and that may be judged once more, locked. `is_gold`: whether its
    answer is to be known; None: as it comes."""
    values = {"project": rules.id, "user": user, "now": now, "overlap": rules.overlap}
    query, taken = _next(is_gold), list[int]()
    while (item := session.scalar(query.where(Item.id.not_in(taken)) if taken else query, values)) is not None:
        # Between counting and locking another may have come.
        if item.is_gold or not locks_rows(session) or others(session, item, user, now) < rules.overlap:
            return item
        taken.append(item.id)
    return None


@cache
def _count() -> Update:
    votes = Item.votes + bindparam("more")
    overlap = select(Project.overlap).where(Project.id == Item.project_id).scalar_subquery()
    return update(Item).where(Item.id == ITEM).values(votes=votes, is_full=and_(~Item.is_gold, votes >= overlap))


def count(session: Session, item: int, more: int) -> None:
    """So many votes more on an item. In one statement: others may be counting too."""
    session.connection().execute(_count(), {"item": item, "more": more})


def judged(project: int, is_verdict: bool = False) -> Select[Revision, Assignment]:
    """The last revision of everything that was judged and not undone."""
    last = and_(Revision.assignment_id == Assignment.id, Revision.number == Assignment.revisions)
    return (
        select(Revision, Assignment)
        .join(Assignment, last)
        .where(Assignment.project_id == project, Assignment.is_verdict == is_verdict, Assignment.state != "open")
    )


def own_task(session: Session, user: int, assignment: int, is_verdict: bool = False) -> Assignment:
    task = session.get(Assignment, assignment)
    if task is None or task.user_id != user or task.is_verdict != is_verdict:
        raise DataError(f"task {assignment} is not yours; reload the page to go on with your own.")
    return task


def open_task(session: Session, user: int, assignment: int, is_verdict: bool = False) -> Assignment:
    task = own_task(session, user, assignment, is_verdict)
    if task.state != "open":
        raise DataError(f"task {assignment} was judged already ({task.state}); undo that to judge it again.")
    return task


def revise(
    session: Session, task: Assignment, judgement: Judgement | None, request: str, seconds: float, now: float
) -> int:
    """Append to what was said; None: it is undone."""
    before = task.state
    task.revisions += 1
    task.state = "open" if judgement is None else judgement.kind
    if task.is_verdict:  # what is settled is asked no more
        session.get_one(Item, task.item_id).is_open = task.state in ("open", "skip")
    elif "vote" in (before, task.state):
        count(session, task.item_id, 1 if before != "vote" else -1)
    said = judgement or Judgement("skip")
    if judgement is not None:
        task.draft = None
    session.add(
        Revision(
            assignment_id=task.id,
            number=task.revisions,
            request=request,
            kind="undo" if judgement is None else judgement.kind,
            ranks=None if said.ranks is None else list(in_database(dense(said.ranks), task.order)),
            strength=said.strength,
            is_both_bad=said.is_both_bad,
            comment=storable(said.comment),
            seconds=seconds,
            created_at=now,
        )
    )
    return task.revisions


def task_of(assignment: Assignment, item: Item) -> Task:
    return Task(
        assignment.id,
        messages_of(item),
        tuple(item.completions[i] for i in assignment.order),
        assignment.draft,
    )


def messages_of(item: Item) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in item.messages)  # pyright: ignore[reportArgumentType]


def as_draft(revision: Revision, order: Sequence[int]) -> dict[str, Any]:
    """What was said, as the page had it."""
    return {
        "kind": revision.kind,
        "ranks": None if revision.ranks is None else [revision.ranks[i] for i in order],
        "strength": revision.strength,
        "is_both_bad": revision.is_both_bad,
        "comment": revision.comment,
    }
