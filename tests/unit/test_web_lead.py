"""The lead's pages: what is asked of whom, what came in, and what is learned from it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from web_helpers import PASSWORD, browser, filled, signed_in

from whelp.feedback.accounts import Accounts
from whelp.feedback.judgements import Judgement
from whelp.feedback.store import Store
from whelp.web import processes as processes_module
from whelp.web.processes import Processes

pytestmark = pytest.mark.usefixtures("quick_hashing")
ROLES = ("admin", "adjudicator", "annotator")


def vote_all(store: Store, project: int, name: str, ranks: tuple[int, ...]) -> None:
    """`ranks` of the completions as they lie in the database, so that people agree whatever stands first."""
    user = store.user_named(name) or store.add_user(name, "annotator")
    while (task := store.take(project, user)) is not None:
        given = tuple(ranks[int(text[-1])] for text in task.completions)
        store.submit(user, task.assignment, Judgement("vote", given), f"{name}-{task.assignment}-request")


# -- a project from nothing -------------------------------------------------------------------------------------------


def test_a_project_from_nothing_to_a_download(store: Store) -> None:
    client = browser(store)
    page = client.post("/projects", data={"name": " in  the garden "})
    assert page.url.path == "/projects/1"
    assert "in the garden" in client.get("/").text
    assert "already" in client.post("/projects", data={"name": "in the garden"}).text
    lines = [{"prompt": f"question {i}", "completions": ["answer 0", "answer 1"]} for i in range(3)]
    file = ("todo.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert "0 on 0 of 3 items" in client.post("/projects/1/import", files={"file": file}).text
    known = ("known.json", json.dumps([{"prompt": "2+2?", "completions": ["answer 0", "answer 1"], "ranks": [1, 2]}]))
    client.post("/projects/1/import", files={"file": known}, data={"gold": "true"})
    assert [item.gold for item in store.items(1)] == [None, None, None, (1, 2)]
    form = {"overlap": "2", "lease_minutes": "5", "min_seconds": "3", "gold_every": "2", "guidelines": "Be **kind**."}
    assert client.post("/projects/1/rules", data=form).url.path == "/projects/1"
    rules = store.rules(1)
    assert (rules.overlap, rules.lease_seconds, rules.min_seconds, rules.gold_every) == (2, 300.0, 3.0, 2)
    for name in ("ann", "bob"):
        vote_all(store, 1, name, (1, 2))
    page = client.get("/projects/1").text
    assert "8 on 4 of 4 items" in page
    assert "<strong>kind</strong>" in client.get("/projects/1/annotate").text
    assert "100% (100 to 100); 63% to 77% in published studies" in page
    rows = client.get("/projects/1/export/preference")
    assert rows.headers["content-disposition"] == 'attachment; filename="in-the-garden-preference.jsonl"'
    assert [json.loads(line)["chosen"] for line in rows.text.splitlines()] == ["answer 0"] * 6
    assert client.get("/projects/1/export/nothing").status_code == 409


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"prompt": "a"}\n', "x.jsonl:1: has the keys prompt"),
        ("../../x.txt", "hello", "data is read from .jsonl"),
        ("x.jsonl", '{"prompt": "a", "completions": ["b"]}\n', "x.jsonl"),
        ("x.parquet", "no parquet", "x.parquet"),
        ("", "", None),
    ],
)
def test_a_file_that_cannot_be_used(name: str, content: str, message: str | None, store: Store) -> None:
    client = browser(store)
    client.post("/projects", data={"name": "p"})
    answer = client.post("/projects/1/import", files={"file": (name, content)})
    assert answer.status_code == (422 if message is None else 409)
    assert message is None or (message in answer.text and "/tmp" not in answer.text), answer.text
    assert store.items(1) == []


@pytest.mark.parametrize(
    "form", [{"overlap": "0"}, {"lease_minutes": "x"}, {"min_seconds": "-1"}, {"gold_every": "1e9"}]
)
def test_rules_that_are_none(form: dict[str, str], store: Store) -> None:
    client, project = browser(store), filled(store)
    usual = {"overlap": "2", "lease_minutes": "5", "min_seconds": "3", "gold_every": "2"}
    assert client.post(f"/projects/{project}/rules", data=usual | form).status_code == 422
    assert store.rules(project).overlap == 1


def test_what_is_not_known_is_said_so(store: Store) -> None:
    client, project = browser(store), filled(store)
    page = client.get(f"/projects/{project}").text
    assert page.count("nothing was judged twice") == 2
    assert "None was trained on these votes yet." in page


# -- who may what -----------------------------------------------------------------------------------------------------

OF_ADMINS = [
    ("POST", "/projects", {"name": "x"}),
    ("POST", "/projects/1/rules", {"overlap": "1", "lease_minutes": "1", "min_seconds": "0", "gold_every": "0"}),
    ("POST", "/projects/1/sample", {"prompts": "x"}),
    ("POST", "/projects/1/train", {}),
    ("POST", "/projects/1/shuffle", {}),
    ("GET", "/projects/1/export/raw", None),
    ("GET", "/people", None),
    ("POST", "/people/invite", {"role": "admin"}),
    ("POST", "/people/1", {"role": "admin"}),
    ("GET", "/runs", None),
    ("GET", "/runs/x", None),
    ("GET", "/runs/x/live", None),
    ("GET", "/runs/x/report", None),
]
OF_ADJUDICATORS = [
    ("GET", "/projects/1", None),
    ("GET", "/projects/1/work", None),
    ("GET", "/projects/1/adjudicate", None),
    ("POST", "/projects/1/adjudicate/undo", {"key": "a" * 32}),
    ("POST", "/projects/1/adjudicate/tasks/1/judge", {"key": "a" * 32, "kind": "skip"}),
]


@pytest.mark.parametrize("role", ROLES)
def test_nobody_does_more_than_their_role_may(role: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "start", lambda *_: None)
    filled(store)
    client = signed_in(store, "eve", role)
    for least, routes in (("admin", OF_ADMINS), ("adjudicator", OF_ADJUDICATORS)):
        for method, path, form in routes:
            answer = client.request(method, path, data=form, follow_redirects=False)
            is_refused = answer.status_code == 403
            assert is_refused == (ROLES.index(role) > ROLES.index(least)), (role, path, answer.status_code)
    if role != "admin":
        assert [(person.name, person.role) for person in Accounts(store).people()] == [("eve", role)]
        file = {"file": ("x.jsonl", '{"prompt": "a", "completions": ["b", "c"]}\n')}
        assert client.post("/projects/1/import", files=file).status_code == 403
        big = {"file": ("x.jsonl", "x" * 1_100_000)}
        assert client.post("/projects/1/import", files=big).status_code == 413, "not even read"
        page = client.get("/").text
        assert "New project" not in page


def test_an_admin_may_send_a_large_file(store: Store) -> None:
    filled(store)
    line = json.dumps({"prompt": "a" * 600_000, "completions": ["b" * 600_000, "c"]}) + "\n"
    client = signed_in(store, "ann", "admin")
    assert client.post("/projects/1/import", files={"file": ("x.jsonl", line)}).status_code == 200
    assert len(store.items(1)) == 4
    assert client.post("/projects/1/rules", data={"guidelines": "x" * 1_100_000}).status_code == 413


def test_people_are_invited_changed_and_shut_out(store: Store) -> None:
    admin = signed_in(store, "ann", "admin")
    page = admin.post("/people/invite", data={"role": "adjudicator"}).text
    link = re.search(r'value="http://localhost(/invites/[^"]+)"', page)[1]
    assert link not in admin.get("/people").text, "it is shown once"
    guest = browser(store, host_names=None)
    assert guest.post(link, data={"name": "bob", "password": PASSWORD}).url.path == "/"
    bob = store.user_named("bob")
    assert ("bob", "adjudicator") in [(person.name, person.role) for person in Accounts(store).people()]
    admin.post(f"/people/{bob}", data={"role": "annotator", "active": "true"})
    assert guest.get("/").status_code == 200
    admin.post(f"/people/{bob}", data={"role": "annotator"})
    assert guest.get("/").url.path == "/sign_in", "shut out at once"
    assert "one admin must stay" in admin.post(f"/people/{store.user_named('ann')}", data={"role": "annotator"}).text
    assert admin.post("/people/99", data={"role": "annotator"}).status_code == 409
    assert admin.post(f"/people/{bob}", data={"role": "emperor"}).status_code == 422


# -- adjudication -----------------------------------------------------------------------------------------------------


def test_an_adjudicator_sees_what_was_said_and_settles_it(store: Store) -> None:
    project = filled(store, 2, overlap=2)
    vote_all(store, project, "Ursula", (1, 2))
    vote_all(store, project, "Bertram", (2, 1))
    client = signed_in(store, "cem", "adjudicator")
    assert "Adjudicate (2 wait)" in client.get(f"/projects/{project}").text
    page = client.get(f"/projects/{project}/adjudicate").text
    rows = [re.findall(r"<td>(\d)</td>", row) for row in re.findall(r"<tr><td>Person \d</td>.*?</tr>", page, re.S)]
    assert sorted(rows) == [["1", "2"], ["2", "1"]]
    assert "Ursula" not in page, "who said it is not shown"
    action = re.search(r'action="([^"]+/judge)"', page)[1]
    key = re.search(r'name="key" value="(\w+)"', page)[1]
    page = client.post(action, data={"kind": "vote", "key": key, "rank": ["1", "2"]}).text
    assert "verdicts: 1 of 2" in page
    [verdict] = store.votes(project, is_verdict=True)
    assert verdict.user == "cem"
    undo = re.search(r'id="undo".*?name="key" value="(\w+)"', page, re.S)[1]
    assert "verdicts: 0 of 2" in client.post(f"/projects/{project}/adjudicate/undo", data={"key": undo}).text


# -- in the background ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`command(code)`: what stands in the place of the whelp command."""

    def stand_in(code: str) -> None:
        (tmp_path / "stand_in.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(processes_module.__file__).parents[2]}")
        monkeypatch.setattr(processes_module, "MODULE", "stand_in")

    return stand_in


def until(found, state: str) -> None:
    deadline = time.monotonic() + 60
    while found().state != state:
        assert time.monotonic() < deadline, found()
        time.sleep(0.02)


def test_a_command_goes_on_without_the_server_that_started_it(tmp_path: Path, command) -> None:
    command(
        f"import sys, time, pathlib\nprint(*sys.argv[1:], flush=True)\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\nsys.exit('x' in sys.argv)"
    )
    processes = Processes(tmp_path / "runs")
    assert processes.look("a") is None
    processes.start("a", ["one", "two"], {})
    until(lambda: processes.look("a"), "running")
    with pytest.raises(Exception, match="running already"):
        processes.start("a", [], {})
    processes.start("b", ["x"], {})
    later = Processes(tmp_path / "runs")
    until(lambda: later.look("a"), "running")
    (tmp_path / "go").touch()
    for each in (processes, later):
        until(lambda each=each: each.look("a"), "done")
        until(lambda each=each: each.look("b"), "failed")
    assert later.look("a").log == "one two"
    later.start("a", ["again"], {})
    until(lambda: later.look("a"), "done")
    assert later.look("a").log == "again"


def test_train_and_sample_start_the_commands(store: Store, tmp_path: Path, command) -> None:
    command("import os, sys, json\nprint(json.dumps([sys.argv[1:], os.environ['WHELP_DATABASE']]))")
    project = store.add_project("--overlap")
    client = browser(store, runs_folder=tmp_path / "runs")
    client.post(f"/projects/{project}/train", data={"model": "  --database=x "})
    client.post(f"/projects/{project}/sample", data={"prompts": "one\n\n two \none\n", "n": "3"})
    processes = Processes(tmp_path / "runs")
    for job in ("annotate-1", "annotate-1/sample"):
        until(lambda job=job: processes.look(job), "done")
    runs = tmp_path / "runs" / "annotate-1"
    started = [json.loads(processes.look(job).log) for job in ("annotate-1", "annotate-1/sample")]
    assert started == [
        [["annotate", "train", "--output_dir", str(runs), "--model=--database=x", "--", "--overlap"], store.database],
        [["annotate", "sample", "--n", "3", "--", "--overlap", str(runs / "prompts.jsonl")], store.database],
    ]
    asked = (runs / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in asked] == ["one", "two"]
    assert "no prompt" in client.post(f"/projects/{project}/sample", data={"prompts": " \n"}).text
    page = client.get(f"/projects/{project}").text
    assert "Training: <b>done</b>" in page


def test_what_was_learned_is_shown(store: Store, tmp_path: Path) -> None:
    project = filled(store)
    accuracy = {"mean": 0.61, "low": 0.52, "high": 0.7, "n": 9}
    learned = {
        "accuracy_interval": accuracy, "n": 30, "prompts": 9, "surface": {"accuracy": accuracy | {"mean": 0.55}},
        "learning_curve": [{"prompts": 9, "accuracy": accuracy | {"mean": 0.57}}], "train_prompts": 36, "verdict": "It is.",
    }  # fmt: skip
    folder = tmp_path / "runs" / f"annotate-{project}" / "reward"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(learned))
    client = browser(store, runs_folder=tmp_path / "runs")
    for path in (f"/projects/{project}", f"/projects/{project}/work"):
        page = client.get(path).text
        for text in (
            "61% (52 to 70) of 30 pairs to 9 prompts",
            "Trained on 9 prompts",
            "57% (52 to 70)",
            "It is.",
        ):
            assert text in page, text
