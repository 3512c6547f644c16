"""Who is asked what next, and what they said: each method is one short transaction.

SQLite writes under one lock, taken before the first read; PostgreSQL locks the rows that decide: the user's, and that of an
item before its places are counted. Both wait for each other instead of failing."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from whelp.errors import DataError
from whelp.feedback.database import open_database
from whelp.feedback.judgements import (
    Judged,
    Judgement,
    NewItem,
    Task,
    Vote,
    key_of,
    refuse_bad,
    refuse_wrong,
)
from whelp.feedback.queue import (
    as_draft,
    assign,
    claims,
    items_and_votes,
    judged,
    locks_rows,
    messages_of,
    new_item,
    next_item,
    open_before,
    open_task,
    others,
    own_task,
    project_of,
    revise,
    storable,
    task_of,
    votes_by,
)
from whelp.feedback.schema import Assignment, Item, Project, Revision, User

LARGEST_DRAFT = 20_000
Role = Literal["admin", "adjudicator", "annotator"]
ROLES: tuple[Role, ...] = ("admin", "adjudicator", "annotator")
"""Who may most comes first."""


class Store:
    """A database of human judgements: a SQLite file, or `postgresql://...`. It is made, or brought up to date, when it is opened.

    Raises `ConfigError` where the database cannot be opened.
    """

    def __init__(self, database: str | Path, clock: Callable[[], float] = time.time, rng: random.Random | None = None):
        self.database = str(database)
        self.clock = clock
        self.rng = rng or random.SystemRandom()
        self.engine = open_database(str(database))
        self.writer = self.engine.execution_options(writes=True)
        self.turn: AbstractContextManager[Any] = nullcontext()
        if self.engine.dialect.name == "sqlite":
            self.turn = threading.Lock()  # who waits for SQLite's own sleeps, up to a tenth of a second at a time

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def writing(self, user: int | None = None) -> Iterator[Session]:
        """`user`: whose tasks are changed, one page of theirs at a time."""
        with self.turn, Session(self.writer, expire_on_commit=False) as session, session.begin():
            if user is not None and locks_rows(session):
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
            return new_user(session, name, role, password_hash, self.clock())

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
            session.add_all(new_item(project, item, self.clock(), self.rng.random()) for item in fresh.values())
            return len(fresh)

    # -- the queue of one person ----------------------------------------------------------------------------------

    def take(self, project: int, user: int) -> Task | None:
        """What the user is to judge now: what is open before them, or the next item that too few people judge. None: nothing is
        left for them."""
        with self.writing(user) as session:
            return self._take(session, project, user)

    def _take(self, session: Session, project: int, user: int) -> Task | None:
        now, rules = self.clock(), project_of(session, project)
        for assignment, item in open_before(session, project, user):
            if assignment.expires_at > now or others(session, item, user, now) < rules.overlap:
                assignment.expires_at = now + rules.lease_seconds
                return task_of(assignment, item)
        for is_gold in _kinds(session, rules, user):
            item = next_item(session, rules, user, now, is_gold)
            if item is not None:
                return task_of(assign(session, self.rng, item, user, now, rules.lease_seconds), item)
        return None

    def save_draft(self, user: int, assignment: int, draft: Mapping[str, Any] | None, is_verdict: bool = False) -> None:
        """What the page has not submitted yet: it is there again after a reload. Raises `DataError` where the task is not the
        user's, is judged already, or the draft is too large."""
        if len(json.dumps(draft)) > LARGEST_DRAFT:
            raise DataError(f"a draft of more than {LARGEST_DRAFT} characters is not kept; shorten the comment.")
        with self.writing(user) as session:
            task = open_task(session, user, assignment, is_verdict)
            task.draft = None if draft is None else dict(draft)

    def submit(self, user: int, assignment: int, judgement: Judgement, request: str, is_verdict: bool = False) -> int:
        """The number of the revision. The same `request` sent again is the same revision. Raises `DataError` where the task is
        not the user's or is judged already, and for ranks that are none."""
        with self.writing(user) as session:
            return self._submit(session, user, assignment, judgement, request, is_verdict)

    def submit_and_take(
        self, project: int, user: int, assignment: int, judgement: Judgement, request: str
    ) -> Task | None:
        """As `submit`, then as `take`, in one transaction: what a page does with every vote."""
        with self.writing(user) as session:
            self._submit(session, user, assignment, judgement, request, is_verdict=False)
            return self._take(session, project, user)

    def _submit(
        self, session: Session, user: int, assignment: int, judgement: Judgement, request: str, is_verdict: bool
    ) -> int:
        known = session.scalar(select(Revision).where(Revision.request == request))
        if known is not None and known.assignment_id == assignment:
            own_task(session, user, assignment, is_verdict)
            return known.number
        task = open_task(session, user, assignment, is_verdict)
        refuse_wrong(judgement, len(task.order))
        now = self.clock()
        return revise(session, task, judgement, request, now - task.shown_at, now)

    def undo(self, project: int, user: int, request: str, is_verdict: bool = False) -> Task | None:
        """Open what the user judged last, with what they said as a draft; again and again, back to the first. None: there is
        nothing left to undo. The same `request` sent again undoes nothing more. `is_verdict`: their verdicts instead of their
        votes."""
        now = self.clock()
        with self.writing(user) as session:
            known = session.scalar(select(Revision).where(Revision.request == request))
            if known is not None:
                task = own_task(session, user, known.assignment_id, is_verdict)
                return task_of(task, session.get_one(Item, task.item_id))
            of_user = judged(project, is_verdict).where(Assignment.user_id == user)
            last = session.scalar(of_user.order_by(Revision.id.desc()).limit(1))
            if last is None:
                return None
            task = session.get_one(Assignment, last.assignment_id)
            task.draft = as_draft(last, task.order)
            lease = project_of(session, project).lease_seconds
            revise(session, task, None, request, 0.0, now)
            task.shown_at, task.expires_at = now, now + lease
            return task_of(task, session.get_one(Item, task.item_id))

    def put_before(self, project: int, user: int, item: NewItem) -> int:
        """A task of a new item, its completions in their order, for one who has just seen them. An item that is there already is
        another one's: it gets a key of its own. Raises `DataError` as `add_items` does."""
        refuse_bad(item)
        now = self.clock()
        with self.writing(user) as session:
            made = new_item(project, item, now, self.rng.random())
            made.key = uuid.uuid4().hex
            session.add(made)
            session.flush()
            lease = project_of(session, project).lease_seconds
            task = assign(session, self.rng, made, user, now, lease)
            task.order = list(range(len(item.completions)))
            return task.id

    def sources(self, project: int, user: int, assignment: int) -> list[str]:
        """Who wrote each completion of a task, as they stand there. Raises `DataError` where the task is not the user's, or is
        another project's: who judges there is not to know."""
        with self.reading() as session:
            task = own_task(session, user, assignment)
            if task.project_id != project:
                raise DataError(f"task {assignment} is none of this project's; reload the page to go on with your own.")
            written = session.get_one(Item, task.item_id).sources
            return [written[completion] for completion in task.order]

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
            return project_of(session, project)

    def user_named(self, name: str) -> int | None:
        with self.reading() as session:
            return session.scalar(select(User.id).where(User.name == name))

    def progress(self, project: int, user: int) -> tuple[int, int, int]:
        """(votes of the user, votes of all, votes that are wanted of all but for items whose answer is known)."""
        with self.reading() as session:
            items, given = items_and_votes(session, project)
            return votes_by(session, project, user), given, items * project_of(session, project).overlap

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

    def wanted(self, project: int) -> set[int]:
        """Items of which somebody is still to be asked."""
        rules, now = self.rules(project), self.clock()
        asked = select(Item.id).where(Item.project_id == project, Item.is_open, ~Item.is_full)
        with self.reading() as session:
            is_free = or_(Item.is_gold, claims() < rules.overlap)
            return set(session.scalars(asked.where(is_free), {"now": now}))

    def votes(self, project: int, is_verdict: bool = False) -> list[Vote]:
        """Those that count: of each person and item the last, where it was not undone, in the order in which they were given.
        `is_verdict`: those of adjudicators on what others were at odds about, instead of theirs."""
        found = judged(project, is_verdict).where(Assignment.state == "vote").join(User, User.id == Assignment.user_id)
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
                    is_verdict,
                )
                for revision, assignment, name in session.execute(found.add_columns(User.name).order_by(Revision.id))
            ]

    def requests(self, project: int) -> list[str]:
        """The keys of all that was ever said in a project, undone or not."""
        of_project = select(Revision.request).join(Assignment).where(Assignment.project_id == project)
        with self.reading() as session:
            return list(session.scalars(of_project))

    def withdrawn(self, project: int) -> set[int]:
        """Items that an adjudicator has flagged: nothing is learned from them."""
        flagged = judged(project, is_verdict=True).where(Assignment.state == "flag")
        with self.reading() as session:
            return {assignment.item_id for _, assignment in session.execute(flagged)}

    def prioritise(self, project: int, priorities: Mapping[int, float]) -> None:
        """Ask for the items of highest priority first, and at random for those that have none here."""
        with self.writing() as session:
            session.execute(update(Item).where(Item.project_id == project).values(place=Item.shuffle))
            if priorities:
                one = update(Item).where(Item.project_id == project, Item.id == bindparam("item"))
                places = [{"item": item, "to": -priority} for item, priority in priorities.items()]
                session.connection().execute(one.values(place=bindparam("to")), places)

    def change_rules(self, project: int, **rules: Any) -> None:
        """Raises `DataError` where there is no such project."""
        with self.writing() as session:
            found = project_of(session, project)
            if "overlap" in rules:
                is_full = and_(~Item.is_gold, Item.votes >= rules["overlap"])
                session.execute(update(Item).where(Item.project_id == project).values(is_full=is_full))
            for name, value in rules.items():
                setattr(found, name, storable(value) if isinstance(value, str) else value)


def _kinds(session: Session, rules: Project, user: int) -> tuple[bool | None, ...]:
    """Whether the answer of what comes next is to be known, the first choice first; None: as it comes."""
    if not rules.gold_every:
        return (None,)
    is_due = votes_by(session, rules.id, user) % rules.gold_every == rules.gold_every - 1
    return is_due, not is_due


def new_user(session: Session, name: str, role: str, password_hash: str | None, now: float) -> int:
    """Raises `DataError` where there is somebody of that name."""
    if session.scalar(select(User.id).where(User.name == name)) is not None:
        raise DataError(f"there is somebody called {name!r} already; take another name.")
    user = User(name=name, role=role, password_hash=password_hash, created_at=now)
    session.add(user)
    session.flush()
    return user.id
