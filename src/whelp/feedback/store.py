"""Who is asked what next, and what they said: each method is one short transaction.

SQLite writes under one lock, taken before the first read; PostgreSQL locks the rows that decide: the user's, and that of an
item before its places are counted. Both wait for each other instead of failing."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, func, null, or_, select
from sqlalchemy.orm import Session, aliased

from whelp.errors import DataError
from whelp.feedback.database import open_database
from whelp.feedback.judgements import (
    Judged,
    Judgement,
    NewItem,
    Task,
    Vote,
    dense,
    in_database,
    key_of,
    refuse_bad,
    refuse_wrong,
)
from whelp.feedback.schema import Assignment, Item, Project, Revision, User
from whelp.types import Message

LARGEST_DRAFT = 20_000
Role = Literal["admin", "adjudicator", "annotator"]
ROLES: tuple[Role, ...] = ("admin", "adjudicator", "annotator")
"""Who may most comes first."""


class Store:
    """A database of human judgements: a SQLite file, or `postgresql://...`. It is made, or brought up to date, when it is opened.

    Raises `ConfigError` where the database cannot be opened.
    """

    def __init__(self, database: str | Path, clock: Callable[[], float] = time.time, rng: random.Random | None = None):
        self.clock = clock
        self.rng = rng or random.SystemRandom()
        self.engine = open_database(str(database))
        self.writer = self.engine.execution_options(writes=True)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def writing(self, user: int | None = None) -> Iterator[Session]:
        """`user`: whose tasks are changed, one page of theirs at a time."""
        with Session(self.writer, expire_on_commit=False) as session, session.begin():
            if user is not None:
                session.get_one(User, user, with_for_update=True)
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    # -- what is to be judged, and by whom ------------------------------------------------------------------------

    def add_project(self, name: str, **rules: Any) -> int:
        """Raises `DataError` where there is one of that name."""
        with self.writing() as session:
            if session.scalar(select(Project.id).where(Project.name == name)) is not None:
                raise DataError(f"there is a project {name!r} already; give the new one another name.")
            project = Project(name=name, created_at=self.clock(), **rules)
            session.add(project)
            session.flush()
            return project.id

    def add_user(self, name: str, role: Role, password_hash: str | None = None) -> int:
        """Raises `DataError` where there is somebody of that name."""
        with self.writing() as session:
            if session.scalar(select(User.id).where(User.name == name)) is not None:
                raise DataError(f"there is somebody called {name!r} already; take another name.")
            user = User(name=name, role=role, password_hash=password_hash, created_at=self.clock())
            session.add(user)
            session.flush()
            return user.id

    def add_items(self, project: int, items: Sequence[NewItem]) -> int:
        """How many were new: what is there is left as it is. Raises `DataError` for fewer than two completions, completions that
        are alike, or gold that is no ranking of them."""
        made = {}
        for item in items:
            refuse_bad(item)
            made[key_of(item)] = item
        with self.writing() as session:
            there = set(session.scalars(select(Item.key).where(Item.project_id == project)))
            fresh = {key: item for key, item in made.items() if key not in there}
            session.add_all(
                Item(
                    project_id=project,
                    key=key,
                    messages=[{"role": m.role, "content": m.content} for m in item.messages],
                    category=item.category,
                    completions=list(item.completions),
                    sources=list(item.sources or [""] * len(item.completions)),
                    gold=None if item.gold is None else list(dense(item.gold)),
                    priority=item.priority,
                    shuffle=self.rng.random(),
                    created_at=self.clock(),
                )
                for key, item in fresh.items()
            )
            return len(fresh)

    # -- the queue of one person ----------------------------------------------------------------------------------

    def take(self, project: int, user: int) -> Task | None:
        """What the user is to judge now: what is open before them, or the next item that too few people judge. None: nothing is
        left for them."""
        now = self.clock()
        with self.writing(user) as session:
            rules = _project(session, project)
            for assignment, item in session.execute(_open_before(project, user)):
                if assignment.expires_at > now or _others(session, item, user, now) < rules.overlap:
                    assignment.expires_at = now + rules.lease_seconds
                    return _task(assignment, item)
            for is_wanted in self._wanted(session, rules, user):
                item = _next(session, rules, user, now, is_wanted)
                if item is not None:
                    return _task(self._assign(session, item, user, now + rules.lease_seconds), item)
        return None

    def _wanted(self, session: Session, rules: Project, user: int) -> list[ColumnElement[bool]]:
        """Which items come in question, the first choice first."""
        if not rules.gold_every:
            return [Item.id.is_not(None)]
        votes = select(func.count()).select_from(Assignment).join(Item, Item.id == Assignment.item_id)
        given = session.scalar(
            votes.where(Item.project_id == rules.id, Assignment.user_id == user, Assignment.state == "vote")
        )
        is_gold = Item.gold.is_not(null())
        is_due = (given or 0) % rules.gold_every == rules.gold_every - 1
        return [is_gold, ~is_gold] if is_due else [~is_gold, is_gold]

    def _assign(self, session: Session, item: Item, user: int, expires_at: float) -> Assignment:
        order = list(range(len(item.completions)))
        self.rng.shuffle(order)
        assignment = Assignment(
            item_id=item.id,
            user_id=user,
            order=order,
            shown_at=self.clock(),
            expires_at=expires_at,
            state="open",
            revisions=0,
        )
        session.add(assignment)
        session.flush()
        return assignment

    def save_draft(self, user: int, assignment: int, draft: Mapping[str, Any] | None) -> None:
        """What the page has not submitted yet: it is there again after a reload. Raises `DataError` where the task is not the
        user's, is judged already, or the draft is too large."""
        if len(json.dumps(draft)) > LARGEST_DRAFT:
            raise DataError(f"a draft of more than {LARGEST_DRAFT} characters is not kept; shorten the comment.")
        with self.writing(user) as session:
            _open_task(session, user, assignment).draft = None if draft is None else dict(draft)

    def submit(self, user: int, assignment: int, judgement: Judgement, request: str) -> int:
        """The number of the revision. The same `request` sent again is the same revision. Raises `DataError` where the task is
        not the user's or is judged already, and for ranks that are none."""
        with self.writing(user) as session:
            known = session.scalar(select(Revision).where(Revision.request == request))
            if known is not None and known.assignment_id == assignment:
                _own_task(session, user, assignment)
                return known.number
            task = _open_task(session, user, assignment)
            refuse_wrong(judgement, len(task.order))
            now = self.clock()
            return _revise(session, task, judgement, request, now - task.shown_at, now)

    def undo(self, project: int, user: int, request: str) -> Task | None:
        """Open what the user judged last, with what they said as a draft; again and again, back to the first. None: there is
        nothing left to undo. The same `request` sent again undoes nothing more."""
        now = self.clock()
        with self.writing(user) as session:
            known = session.scalar(select(Revision).where(Revision.request == request))
            if known is not None:
                task = _own_task(session, user, known.assignment_id)
                return _task(task, session.get_one(Item, task.item_id))
            last = session.scalar(_judged_by(project, user).order_by(Revision.id.desc()).limit(1))
            if last is None:
                return None
            task = session.get_one(Assignment, last.assignment_id)
            task.draft = _as_draft(last, task.order)
            lease = _project(session, project).lease_seconds
            _revise(session, task, None, request, 0.0, now)
            task.shown_at, task.expires_at = now, now + lease
            return _task(task, session.get_one(Item, task.item_id))

    # -- what there is, and what was said -------------------------------------------------------------------------------

    def projects(self) -> dict[str, int]:
        """Their ids by name."""
        with self.reading() as session:
            return dict(session.execute(select(Project.name, Project.id).order_by(Project.name)).all())

    def project(self, name: str) -> int:
        """Raises `DataError` where there is none of that name."""
        projects = self.projects()
        if name not in projects:
            raise DataError(f"there is no project {name!r}; there is {', '.join(projects) or 'none'}.")
        return projects[name]

    def rules(self, project: int) -> Project:
        """Raises `DataError` where there is no such project."""
        with self.reading() as session:
            return _project(session, project)

    def user_named(self, name: str) -> int | None:
        with self.reading() as session:
            return session.scalar(select(User.id).where(User.name == name))

    def progress(self, project: int, user: int) -> tuple[int, int, int]:
        """(votes of the user, votes of all, votes that are wanted of all but for items whose answer is known)."""
        votes = (
            select(func.count())
            .select_from(Assignment)
            .join(Item, Item.id == Assignment.item_id)
            .where(Item.project_id == project, Assignment.state == "vote")
        )
        counted = select(func.count()).select_from(Item).where(Item.project_id == project, Item.gold.is_(null()))
        with self.reading() as session:
            mine = session.scalar(votes.where(Assignment.user_id == user)) or 0
            given = session.scalar(votes.where(Item.gold.is_(null()))) or 0
            return mine, given, (session.scalar(counted) or 0) * _project(session, project).overlap

    def items(self, project: int) -> list[Judged]:
        with self.reading() as session:
            return [
                Judged(
                    item.id,
                    messages_of(item),
                    tuple(item.completions),
                    tuple(item.sources),
                    item.category,
                    None if item.gold is None else tuple(item.gold),
                )
                for item in session.scalars(select(Item).where(Item.project_id == project).order_by(Item.id))
            ]

    def votes(self, project: int) -> list[Vote]:
        """Those that count: of each person and item the last, where it was not undone, in the order in which they were given."""
        last = and_(Revision.assignment_id == Assignment.id, Revision.number == Assignment.revisions)
        found = (
            select(Revision, Assignment, User.name)
            .join(Assignment, last)
            .join(Item, Item.id == Assignment.item_id)
            .join(User, User.id == Assignment.user_id)
            .where(Item.project_id == project, Assignment.state == "vote")
            .order_by(Revision.id)
        )
        with self.reading() as session:
            return [
                Vote(
                    assignment.item_id,
                    name,
                    tuple(revision.ranks or ()),
                    tuple(assignment.order),
                    revision.strength,
                    revision.is_both_bad,
                    revision.comment,
                    revision.seconds,
                    revision.created_at,
                )
                for revision, assignment, name in session.execute(found)
            ]


# -- pieces of a transaction ------------------------------------------------------------------------------------------


def _project(session: Session, project: int) -> Project:
    found = session.get(Project, project)
    if found is None:
        raise DataError(f"there is no project {project}; go back to the list.")
    return found


def _is_claim(table: type[Assignment], now: float) -> ColumnElement[bool]:
    """Whether somebody has judged the item or is at it."""
    return or_(table.state == "vote", and_(table.state == "open", table.expires_at > now))


def _claims(now: float) -> ScalarSelect[int]:
    """How many there are on the item of the outer query."""
    other = aliased(Assignment)
    of_it = select(func.count()).select_from(other).where(other.item_id == Item.id, _is_claim(other, now))
    return of_it.scalar_subquery()


def _others(session: Session, item: Item, user: int, now: float) -> int:
    """How many but the user have judged the item or are at it."""
    query = select(func.count()).select_from(Assignment).where(_is_claim(Assignment, now))
    return session.scalar(query.where(Assignment.item_id == item.id, Assignment.user_id != user)) or 0


def _open_before(project: int, user: int) -> Select[Assignment, Item]:
    return (
        select(Assignment, Item)
        .join(Item, Item.id == Assignment.item_id)
        .where(Item.project_id == project, Item.is_open, Assignment.user_id == user, Assignment.state == "open")
        .order_by(Assignment.shown_at, Assignment.id)
    )


def _next(session: Session, rules: Project, user: int, now: float, is_wanted: ColumnElement[bool]) -> Item | None:
    """The first item in the queue that the user has not met and that may be judged once more, locked."""
    met = select(Assignment.item_id).where(Assignment.user_id == user)
    is_free = or_(Item.gold.is_not(null()), _claims(now) < rules.overlap)
    query = (
        select(Item)
        .where(Item.project_id == rules.id, Item.is_open, Item.id.not_in(met), is_free, is_wanted)
        .order_by(Item.priority.desc().nulls_last(), Item.shuffle, Item.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Item)
    )
    taken: list[int] = []
    while (item := session.scalar(query.where(Item.id.not_in(taken)))) is not None:
        # Between counting and locking another may have come.
        if item.gold is not None or _others(session, item, user, now) < rules.overlap:
            return item
        taken.append(item.id)
    return None


def _judged_by(project: int, user: int) -> Select[Revision]:
    """The last revision of everything that the user has judged and not undone."""
    last = and_(Revision.assignment_id == Assignment.id, Revision.number == Assignment.revisions)
    return (
        select(Revision)
        .join(Assignment, last)
        .join(Item, Item.id == Assignment.item_id)
        .where(Item.project_id == project, Assignment.user_id == user, Assignment.state != "open")
    )


def _own_task(session: Session, user: int, assignment: int) -> Assignment:
    task = session.get(Assignment, assignment)
    if task is None or task.user_id != user:
        raise DataError(f"task {assignment} is not yours; reload the page to go on with your own.")
    return task


def _open_task(session: Session, user: int, assignment: int) -> Assignment:
    task = _own_task(session, user, assignment)
    if task.state != "open":
        raise DataError(f"task {assignment} was judged already ({task.state}); undo that to judge it again.")
    return task


def _revise(
    session: Session, task: Assignment, judgement: Judgement | None, request: str, seconds: float, now: float
) -> int:
    """Append to what was said; None: it is undone."""
    task.revisions += 1
    task.state = "open" if judgement is None else judgement.kind
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
            comment=said.comment,
            seconds=seconds,
            created_at=now,
        )
    )
    return task.revisions


def _task(assignment: Assignment, item: Item) -> Task:
    return Task(
        assignment.id,
        messages_of(item),
        tuple(item.completions[i] for i in assignment.order),
        assignment.draft,
    )


def messages_of(item: Item) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in item.messages)  # pyright: ignore[reportArgumentType]


def _as_draft(revision: Revision, order: Sequence[int]) -> dict[str, Any]:
    """What was said, as the page had it."""
    return {
        "kind": revision.kind,
        "ranks": None if revision.ranks is None else [revision.ranks[i] for i in order],
        "strength": revision.strength,
        "is_both_bad": revision.is_both_bad,
        "comment": revision.comment,
    }
