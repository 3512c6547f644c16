"""Sixteen people at once for two seconds, on SQLite and on a real PostgreSQL, and a server that is killed while they vote.
The long load is in benchmarks/annotators.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
load = pytest.importorskip("annotators", reason="benchmarks/ lies beside tests/")


@pytest.mark.proof
def test_a_killed_server_loses_no_vote_and_doubles_none(database: str, tmp_path: Path) -> None:
    found = load.vote_at_once(database, tmp_path, annotators=16, seconds=2, pause=0.1, kills=1, items=400)
    assert found.kills == 1
    assert len(found.acknowledged) >= 16


@pytest.mark.proof
@pytest.mark.parametrize(("pause", "kills"), load.WAYS.values(), ids=load.WAYS)
def test_a_minute_of_sixteen_people(database: str, pause: float, kills: int, tmp_path: Path) -> None:
    found = load.vote_at_once(database, tmp_path, annotators=16, seconds=60, pause=pause, kills=kills)
    assert found.kills == kills
    assert len(found.acknowledged) >= 16


@pytest.mark.parametrize("damage", ["lost", "doubled", "too many"])
def test_the_check_of_a_load_can_fail(damage: str, tmp_path: Path) -> None:
    from feedback_helpers import items, vote

    from whelp.feedback.store import Store

    store = Store(tmp_path / "x.db")
    project = store.add_project("load", overlap=3 if damage == "too many" else 1)
    store.add_items(project, items(1 if damage == "too many" else 3))
    for name in "abc":
        user = store.add_user(name, "annotator")
        vote(store, user, store.take(project, user))
    found = load.Load(acknowledged=store.requests(project))
    if damage == "lost":
        found.acknowledged.append("never-stored")
    if damage == "doubled":
        found.acknowledged.pop()
    with pytest.raises(AssertionError):
        load.check(store, project, found)
    store.close()
