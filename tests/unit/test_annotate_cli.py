"""`whelp annotate` without its page: from a file to a database, and from votes to records and numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from whelp.cli import app
from whelp.feedback.judgements import Judgement
from whelp.feedback.store import Store
from whelp.recipes import load_recipe
from whelp.splits import split_rankings
from whelp.text.formats import read_rankings


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHELP_DATABASE", raising=False)


def whelp(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["annotate", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def write(name: str, *records: dict) -> str:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def unranked(count: int, **more: object) -> list[dict]:
    return [
        {"prompt": f"question {i}", "completions": [f"a short {i}", f"quite a long answer {i}", f"no {i}"], **more}
        for i in range(count)
    ]


def everybody_votes(database: str, project: str, users: str) -> None:
    """For the longest completion, always."""
    store = Store(database)
    id = store.project(project)
    for name in users:
        user = store.add_user(name, "annotator")
        while (task := store.take(id, user)) is not None:
            lengths = [len(text) for text in task.completions]
            ranks = tuple(1 + sum(other > mine for other in lengths) for mine in lengths)
            store.submit(user, task.assignment, Judgement("vote", ranks), f"{name}-{task.assignment}")
    store.close()


def test_from_a_file_through_votes_to_what_trains() -> None:
    file = write("todo.jsonl", *unranked(8), *unranked(2, ranks=[None] * 3))
    assert "helpful: 8 of 8 items are new" in whelp("import", "helpful", file, "--overlap", "2")
    assert "helpful: 0 of 8 items are new" in whelp("import", "helpful", file)
    everybody_votes("feedback.db", "helpful", "abc")
    assert "votes.jsonl: 16 records (kwise)" in whelp("export", "helpful", "votes.jsonl")
    assert "pairs.jsonl: 48 records (preference)" in whelp("export", "helpful", "pairs.jsonl", "--format", "preference")
    for named in ("votes.jsonl", "db:helpful"):
        records = read_rankings(named).records
        assert len(records) == 8
        assert {record.ranks[1] for record in records} == {1}
        assert {record.weight for record in records} == {2.0}, "two said so"
    recipe = load_recipe(
        "assistant", ["reward.train_file=db:helpful", "evaluate.judge=false", "reward.test_fraction=0.5"]
    )
    split = split_rankings(recipe)
    assert len(split.train) + len(split.held_out) == 8


def test_pairs_and_answers_that_were_ranked_before_can_be_ranked_again() -> None:
    file = write("pairs.jsonl", {"prompt": "Hello", "chosen": "Hi!", "rejected": "No."})
    assert "p: 1 of 1 items are new (prompt/chosen/rejected)" in whelp("import", "p", file)
    everybody_votes("feedback.db", "p", "a")
    assert read_rankings("db:p").records[0].completions == ("Hi!", "No.")


def test_known_answers_do_not_train_and_show_who_pays_attention() -> None:
    whelp("import", "p", write("todo.jsonl", *unranked(4)))
    known = [{"prompt": f"known {i}", "completions": ["yes", "never"], "ranks": [2, 1]} for i in range(3)]
    assert "3 of 3 items" in whelp("import", "p", write("gold.jsonl", *known), "--gold")
    everybody_votes("feedback.db", "p", "a")
    assert len(read_rankings("db:p").records) == 4
    assert "100% (100 to 100)" in whelp("stats", "p")


def test_what_is_said_of_people_who_take_the_longest() -> None:
    whelp("import", "p", write("todo.jsonl", *unranked(12)), "--overlap", "2")
    shown = whelp("stats", "p")
    assert "0 votes on 0 of 12 items" in shown
    assert shown.count("nothing was judged twice") == 2, "agreement and alpha"
    everybody_votes("feedback.db", "p", "ab")
    shown = whelp("stats", "p")
    assert "24 votes on 12 of 12 items" in shown
    assert "two people agree      100% (100 to 100)" in shown
    assert "63% to 77%" in shown
    assert "a and b" in shown
    assert shown.count("100% (100 to 100)") == 6, "agreement, each one's taste for length beside the other's, each two"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "p", "x.jsonl"], 2, "there is no project 'p'; there is none"),
        (["stats", "p", "--database", "mysql://x/y"], 2, "expected a SQLite file or postgresql"),
        (["import", "p", "nowhere.jsonl"], 2, "there is no such file"),
        (["export", "p", "x.jsonl", "--format", "xml"], 2, "expected one of preference, kwise"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], code: int, message: str) -> None:
    assert message in " ".join(whelp(*arguments, code=code).split())


@pytest.mark.parametrize(("project", "message"), [("p", "there is no project 'p'"), ("q", "nobody has voted yet")])
def test_a_project_that_cannot_train(project: str, message: str) -> None:
    whelp("import", "q", write("todo.jsonl", *unranked(1)))
    with pytest.raises(Exception, match=message):
        read_rankings(f"db:{project}")


def test_no_database_is_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"there is no database feedback\.db; WHELP_DATABASE names another"):
        read_rankings("db:p")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHELP_DATABASE", "deep/team.db")
    whelp("import", "p", write("todo.jsonl", *unranked(1)))
    assert Path("deep/team.db").is_file()
    everybody_votes("deep/team.db", "p", "a")
    assert len(read_rankings("db:p").records) == 1
