"""The database of human judgements, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from feedback_helpers import Clock, Open, asked, items, new_request, vote
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from whelp.errors import ConfigError, DataError
from whelp.feedback import database as module
from whelp.feedback.judgements import Judgement, NewItem
from whelp.feedback.schema import Base, Item
from whelp.feedback.store import Store
from whelp.types import Message

# -- the tables -------------------------------------------------------------------------------------------------------


def test_the_migrations_make_what_the_schema_says(open_store: Open) -> None:
    store = open_store()
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert open_store().votes(1) == [], "opened again, it is left as it is"


def test_a_database_of_before_the_index_goes_on(database: str) -> None:
    engine = module._engine(database)
    with engine.execution_options(writes=True).begin() as connection:
        module._migrate(connection, "0001")
        connection.execute(text("INSERT INTO projects VALUES (1, 'p', '', 2, 60, 0, 0, 0)"))
        for user, name in ((1, "ann"), (2, "bob")):
            values = f"({user}, '{name}', 'annotator', NULL, true, 0, 0, 0)"
            connection.execute(text(f"INSERT INTO users VALUES {values}"))
        for item, (gold, priority) in enumerate(
            [("NULL", "NULL"), ("NULL", "0.5"), ("'[1, 2]'", "NULL"), ("NULL", "NULL")], 1
        ):
            said = f"""'[{{"role"\\: "user", "content"\\: "question {item}"}}]', '', '["a", "b"]', '["", ""]'"""
            values = f"({item}, 1, 'key-{item}', {said}, {gold}, {priority}, 0.{item}, true, 0)"
            connection.execute(text(f"INSERT INTO items VALUES {values}"))
        votes = [(1, 1, "vote", "false"), (1, 2, "vote", "false"), (4, 1, "vote", "false"), (4, 1, "vote", "true")]
        for number, (item, user, state, is_verdict) in enumerate(votes, 1):
            values = f"({number}, {item}, {user}, {is_verdict}, '[0, 1]', NULL, 0, 0, '{state}', 1)"
            connection.execute(text(f"INSERT INTO assignments VALUES {values}"))
            values = f"({number}, {number}, 1, 'request-{number}', 'vote', '[1, 2]', NULL, false, '', 0, 0)"
            connection.execute(text(f"INSERT INTO revisions VALUES {values}"))
        if engine.dialect.name == "postgresql":  # ids that were given are not counted
            for table in ("assignments", "revisions"):
                connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 10)"))
    engine.dispose()
    store = Store(database)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert store.progress(1, 1) == (2, 3, 6)
    assert store.wanted(1) == {2, 3, 4}
    asked_of = []
    user = store.user_named("bob")
    for _ in range(3):
        task = store.take(1, user)
        asked_of.append(asked(task))
        store.save_draft(user, task.assignment, {})
        store.submit(user, task.assignment, Judgement("vote", (1, 2)), f"{len(asked_of)}-{new_request()}"[:64])
    assert asked_of == ["question 2", "question 3", "question 4"], "the one with a priority first"
    assert store.take(1, user) is None
    store.close()


def test_counts_of_votes_are_those_of_the_votes(open_store: Open) -> None:
    store, draw = open_store(), random.Random(0)
    project = store.add_project("p", overlap=2)
    store.add_items(project, [*items(6), NewItem((Message("user", "known"),), ("a", "b"), gold=(1, 2))])
    users = [store.add_user(name, "annotator") for name in "abc"]
    for _ in range(60):
        user = draw.choice(users)
        if draw.random() < 0.3:
            store.undo(project, user, new_request())
        elif (task := store.take(project, user)) is not None:
            said = draw.choice([Judgement("vote", (1, 2)), Judgement("skip")])
            store.submit(user, task.assignment, said, new_request())
        if draw.random() < 0.1:
            store.change_rules(project, overlap=draw.choice([1, 2, 3]))
        counted = Counter(v.item for v in store.votes(project))
        overlap = store.rules(project).overlap
        with store.reading() as session:
            for item in session.query(Item):
                assert item.votes == counted[item.id]
                assert item.is_full == (not item.is_gold and counted[item.id] >= overlap)
        gold = next(item.id for item in store.items(project) if item.gold)
        assert store.progress(project, users[0])[1:] == (sum(counted.values()) - counted[gold], 6 * overlap)
        assert store.progress(project, users[0])[0] == sum(v.user == "a" for v in store.votes(project))


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


def test_what_no_database_of_texts_holds_is_left_out(open_store: Open) -> None:
    store = open_store()
    project, user = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(1, category="a\x00b"))
    store.change_rules(project, guidelines="be\x00 kind")
    task = store.take(project, user)
    store.submit(user, task.assignment, Judgement("flag", comment="it\x00 breaks"), new_request())
    assert store.items(project)[0].category == "ab"
    assert store.rules(project).guidelines == "be kind"
