"""What people are at odds about is settled by one, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
from feedback_helpers import Clock, Open, items, new_request

from whelp.errors import DataError
from whelp.feedback.export import rows_of
from whelp.feedback.judgements import Judgement
from whelp.feedback.store import Store
from whelp.feedback.verdicts import Verdicts, opposed


def say(store: Store, project: int, user: int, opinions: dict[str, Judgement]) -> None:
    """Judge all that comes: by its question, ranks as the completions lie in the database."""
    while (task := store.take(project, user)) is not None:
        said = opinions[task.messages[-1].content]
        ranks = None if said.ranks is None else tuple(said.ranks[int(text[-1])] for text in task.completions)
        store.submit(user, task.assignment, Judgement(said.kind, ranks, comment=said.comment), new_request())


FIRST, SECOND, TIE = (Judgement("vote", ranks) for ranks in ((1, 2), (2, 1), (1, 1)))
FLAG = Judgement("flag", comment="in Dutch")


def disputed(store: Store) -> tuple[int, int]:
    """(project, adjudicator): of five items two are at odds, one is flagged, one has a tie in it, and one is clear."""
    project = store.add_project("p", overlap=2)
    store.add_items(project, items(5))
    opinions = [(FIRST, FIRST), (FIRST, SECOND), (SECOND, FIRST), (TIE, SECOND), (FLAG, FIRST)]
    for who, name in enumerate(("ann", "bob")):
        said = {f"question {i}": both[who] for i, both in enumerate(opinions)}
        say(store, project, store.add_user(name, "annotator"), said)
    return project, store.add_user("cem", "adjudicator")


def taken(store: Store, project: int, user: int):
    found = Verdicts(store).take(project, user)
    assert found is not None
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_a_dispute_is_a_pair_that_some_prefer_one_way_and_some_the_other(count: int) -> None:
    every = [*permutations(range(1, count + 1)), (1,) * count]
    for one in every:
        for other in every:
            slow = [(one[a] - one[b]) * (other[a] - other[b]) < 0 for a in range(count) for b in range(a + 1, count)]
            assert opposed([one, other]) == sum(slow) / len(slow)
            assert opposed([one, (1,) * count, other]) == opposed([one, other]), "a tie is at odds with nobody"
    assert opposed([]) == opposed([(1, 2)]) == 0.0


def test_the_flagged_and_the_disputed_are_settled_and_nothing_else(open_store: Open) -> None:
    store = open_store()
    project, cem = disputed(store)
    assert Verdicts(store).waiting(project) == 3
    settled = []
    while (found := Verdicts(store).take(project, cem)) is not None:
        task, said = found
        settled.append(task.messages[-1].content)
        texts = [one.ranks for one in said]
        place = {int(text[-1]): place for place, text in enumerate(task.completions)}
        if settled[-1] == "question 4":
            assert sorted((one.kind, one.comment) for one in said) == [("flag", "in Dutch"), ("vote", "")]
        else:
            assert sorted(ranks[place[0]] for ranks in texts) == [1, 2], "both opinions, in the adjudicator's own order"
        ranks = tuple(1 + place for place in range(2))
        store.submit(cem, task.assignment, Judgement("vote", ranks), new_request(), is_verdict=True)
    assert settled[0] == "question 4", "what somebody flagged comes first"
    assert sorted(settled) == ["question 1", "question 2", "question 4"]
    assert Verdicts(store).waiting(project) == 0
    assert len(store.votes(project, is_verdict=True)) == 3
    assert len(store.votes(project)) == 9, "nothing of what was said is lost"


def test_a_verdict_counts_instead_of_the_votes(open_store: Open) -> None:
    store = open_store()
    project, cem = disputed(store)
    flagged, _ = taken(store, project, cem)
    store.submit(cem, flagged.assignment, FLAG, new_request(), is_verdict=True)
    task, _ = taken(store, project, cem)
    best = task.completions[1]
    store.submit(cem, task.assignment, Judgement("vote", (2, 1)), new_request(), is_verdict=True)
    found, left_out = rows_of(store, project, "kwise")
    by_question = {}
    for row in found:
        better = row["completions"][row["ranks"].index(1)] if len(set(row["ranks"])) > 1 else None
        by_question.setdefault(row["prompt"][-1]["content"], []).append((row["annotator"], better))
    question = task.messages[-1].content
    assert by_question[question] == [("cem", best)]
    assert "question 4" not in by_question, "withdrawn"
    assert len(by_question["question 0"]) == 2
    assert left_out == {"votes on withdrawn items": 1, "votes that a verdict settled": 2}
    raw, left_out = rows_of(store, project, "raw")
    assert (len(raw), left_out) == (10, {})
    assert [row["annotator"] for row in raw if row["is_verdict"]] == ["cem"]
    assert json.loads(json.dumps(raw)) == raw


def test_what_is_settled_is_asked_no_more_until_it_is_undone(open_store: Open) -> None:
    store = open_store()
    project, cem = disputed(store)
    dan = store.add_user("dan", "annotator")
    assert store.take(project, dan).messages[-1].content == "question 4", "flagged by one of the two"
    other = store.add_user("eve", "annotator")
    store.change_rules(project, overlap=3)
    task, _ = taken(store, project, cem)
    question = task.messages[-1].content
    store.submit(cem, task.assignment, Judgement("vote", (1, 2)), new_request(), is_verdict=True)

    def asked_of(user: int) -> set[str]:
        seen = set()
        while (task := store.take(project, user)) is not None:
            seen.add(task.messages[-1].content)
            store.submit(user, task.assignment, Judgement("skip"), new_request())
        return seen

    assert asked_of(other) == {f"question {i}" for i in range(5)} - {question}
    again = store.undo(project, cem, new_request(), is_verdict=True)
    assert again.draft["ranks"] == [1, 2]
    assert taken(store, project, cem)[0].assignment == task.assignment
    assert asked_of(store.add_user("fay", "annotator")) == {f"question {i}" for i in range(5)}


def test_votes_and_verdicts_of_one_person_are_kept_apart(open_store: Open) -> None:
    store = open_store()
    project, _ = disputed(store)
    ann = store.user_named("ann")
    task, _ = taken(store, project, ann)
    for kind in (False, True):
        with pytest.raises(DataError, match="not yours"):
            store.submit(ann, task.assignment if not kind else 1, FIRST, new_request(), is_verdict=kind)
    with pytest.raises(DataError, match="not yours"):
        store.save_draft(ann, task.assignment, {})
    store.submit(ann, task.assignment, Judgement("vote", (1, 2)), new_request(), is_verdict=True)
    assert store.progress(project, ann)[0] == 4, "votes, not verdicts"
    said = [store.undo(project, ann, new_request()).draft["kind"] for _ in range(5)]
    assert sorted(said) == ["flag", "vote", "vote", "vote", "vote"]
    assert store.undo(project, ann, new_request()) is None
    assert [vote.user for vote in store.votes(project, is_verdict=True)] == ["ann"]


def test_two_adjudicators_settle_different_things(open_store: Open) -> None:
    clock = Clock()
    store = open_store(clock=clock)
    project, cem = disputed(store)
    dan = store.add_user("dan", "adjudicator")
    first, second = taken(store, project, cem)[0], taken(store, project, dan)[0]
    assert first.messages != second.messages
    assert taken(store, project, cem)[0].assignment == first.assignment
    store.submit(dan, second.assignment, Judgement("skip"), new_request(), is_verdict=True)
    third = taken(store, project, dan)[0]
    assert third.messages not in (first.messages, second.messages), "skipped: for somebody else"
    clock.now += 10_000
    store.submit(dan, third.assignment, Judgement("vote", (1, 2)), new_request(), is_verdict=True)
    assert taken(store, project, dan)[0].messages == first.messages, "cem took it and left"
    assert Verdicts(store).take(project, cem)[0].messages == second.messages


def test_the_task_that_was_undone_is_the_one_on_the_page(tmp_path: Path) -> None:
    store = Store(tmp_path / "x.db")
    project, ann = store.add_project("p"), store.add_user("ann", "annotator")
    store.add_items(project, items(3))
    first = store.take(project, ann)
    store.submit(ann, first.assignment, FIRST, new_request())
    second = store.take(project, ann)
    store.save_draft(ann, second.assignment, {"ranks": [2, 1]})
    store.undo(project, ann, new_request())
    assert store.take(project, ann).assignment == first.assignment, "a reload shows what was undone"
    store.submit(ann, first.assignment, SECOND, new_request())
    assert store.take(project, ann).draft == {"ranks": [2, 1]}
    store.close()
