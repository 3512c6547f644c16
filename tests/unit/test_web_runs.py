"""Runs as they go, and models side by side."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from report_helpers import put_lines
from web_helpers import browser

from whelp.errors import DataError
from whelp.feedback.judgements import NewItem
from whelp.feedback.store import Store
from whelp.report import write_report
from whelp.text.formats import read_rankings
from whelp.types import Message
from whelp.web.playground import PROJECT, Playground

# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/live"])
def test_a_run_shows_its_curves_and_its_samples(path: str, run: Path, store: Store) -> None:
    client = browser(store, runs_folder=run.parent)
    assert 'href="/runs/assistant"' in client.get("/runs").text
    answer = client.get(f"/runs/assistant{path}")
    page = answer.text
    for title in (
        "KL to the SFT model",
        "Answer length",
        "Entropy",
        "repetition",
        "Score, and",
        "Reward model: accuracy",
        "SFT",
    ):
        assert title in page, title
    assert page.count('<svg class="plot"') == page.count("<figure>") >= 8
    assert 'data-live="no"' in page
    assert "'unsafe-inline'" in answer.headers["content-security-policy"]
    assert "script-src 'self';" in answer.headers["content-security-policy"]


def test_samples_of_each_step_and_a_run_that_goes_on(run: Path, store: Store) -> None:
    (run / "ppo" / "DONE.json").unlink()
    (run / "ppo" / "metrics.json").unlink(missing_ok=True)
    said = "<script>alert(1)</script>"
    sample = {"prompt": "why?", "completion": said, "score": 1.25, "kl": 0.5}
    put_lines(run / "ppo" / "samples.jsonl", [sample | {"step": step, "prompt": f"why {step}?"} for step in (1, 2, 7)])
    client = browser(store, runs_folder=run.parent)
    page = client.get("/runs/assistant").text
    assert 'data-live="yes"' in page
    assert "why 7?" in page
    assert "why 2?" not in page
    assert said not in page
    assert "score 1.25, KL 0.50" in page
    assert "why 2?" in client.get("/runs/assistant?step=2").text
    assert "why 7?" in client.get("/runs/assistant?step=5").text, "the newest, where there is none"
    put_lines(run / "ppo" / "samples.jsonl", [sample | {"step": 8, "prompt": "why 8?"}])
    assert "why 8?" in client.get("/runs/assistant/live").text


def test_curves_grow_with_their_log(run: Path, store: Store) -> None:
    client = browser(store, runs_folder=run.parent)
    before = client.get("/runs/assistant/live").text
    assert client.get("/runs/assistant/live").text == before
    log = run / "ppo" / "metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    assert client.get("/runs/assistant/live").text != before


def test_the_report_can_do_nothing_but_be_read(run: Path, store: Store) -> None:
    client = browser(store, runs_folder=run.parent)
    assert client.get("/runs/assistant/report").status_code == 409
    write_report(run)
    answer = client.get("/runs/assistant/report")
    assert answer.status_code == 200
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["%2e%2e", "..%2fassistant", "%2fetc", "assistant%2freward", "x", "assistant%00"])
@pytest.mark.parametrize("page", ["", "/live", "/report"])
def test_nothing_but_a_run_of_the_list_is_read(name: str, page: str, run: Path, store: Store) -> None:
    secret = run.parent.parent / "manifest.json"
    shutil.copy(run / "manifest.json", secret)
    client = browser(store, runs_folder=run.parent)
    answer = client.get(f"/runs/{name}{page}", follow_redirects=False)
    assert answer.status_code in (404, 409), answer.text
    secret.unlink()


def test_no_runs_at_all(tmp_path: Path, store: Store) -> None:
    assert "whelp run" in browser(store, runs_folder=tmp_path / "nowhere").get("/runs").text


# -- the playground ---------------------------------------------------------------------------------------------------


class Parrots:
    """Models that say what they were told to, a letter at a time."""

    def __init__(self, **said: str):
        self.said = said
        self.told: list[Sequence[Message]] = []
        self.letters = 0
        self.breath = threading.Semaphore(1_000_000)

    def refuse_long(self, messages: Sequence[Message]) -> None:
        if len(messages[-1].content) > 100:
            raise DataError("there is no room for this.")

    def answers(self, messages, names, key) -> Iterator[tuple[str, str]]:
        self.told.append(messages)
        for place in range(max(map(len, self.said.values()))):
            for name in names:
                if place < len(self.said[name]):
                    self.breath.acquire()
                    self.letters += 1
                    yield name, self.said[name][place]


def asked(client, is_blind: bool = False, *turns: str) -> tuple[list[str], dict]:
    """(what stands at each place, the last line)"""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns or ("hello",))]
    answer = client.post("/playground/ask", json={"messages": messages, "is_blind": is_blind})
    assert answer.status_code == 200, answer.text
    *pieces, last = map(json.loads, answer.text.splitlines())
    texts: dict[int, str] = {}
    for piece in pieces:
        texts[piece["place"]] = texts.get(piece["place"], "") + piece["text"]
    return [texts[place] for place in sorted(texts)], last


def chosen(client, last: dict, place: int | None, is_bad: bool = False) -> list[str]:
    best = None if place is None else last["of"][place]
    choice = {"best": best, "is_bad": is_bad, "key": f"{last['task']}-a-request"}
    answer = client.post(f"/playground/tasks/{last['task']}/vote", json=choice)
    assert answer.status_code == 200, answer.text
    assert client.post(f"/playground/tasks/{last['task']}/vote", json=choice).status_code == 200, "sent again"
    return answer.json()["sources"]


def playground(store: Store, **said: str):
    parrots = Parrots(**said)
    return parrots, browser(store, models=Playground(parrots, list(said)))


def test_two_models_answer_and_the_better_answer_becomes_a_preference(store: Store) -> None:
    parrots, client = playground(store, base="Um.", sft="Hello!")
    assert "Playground" in client.get("/").text
    texts, last = asked(client, False, "hello", "hi", "how are you?")
    assert (texts, last["names"]) == (["Um.", "Hello!"], ["base", "sft"])
    assert [m.content for m in parrots.told[0]] == ["hello", "hi", "how are you?"]
    assert chosen(client, last, 1) == ["base", "sft"]
    [record] = read_rankings(f"db:{PROJECT}").records
    assert (record.completions, record.ranks) == (("Um.", "Hello!"), (2, 1))
    assert [m.content for m in record.prompt.messages] == ["hello", "hi", "how are you?"]


@pytest.fixture(autouse=True)
def _database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHELP_DATABASE", store.database)


def test_who_is_blind_sees_no_name_before_the_vote(store: Store) -> None:
    _, client = playground(store, base="Um.", sft="Hello!", rlhf="Good day.")
    orders = set()
    for _ in range(20):
        texts, last = asked(client, True)
        assert "names" not in last
        orders.add(tuple(texts))
        names = chosen(client, last, 0)
        assert [{"base": "Um.", "sft": "Hello!", "rlhf": "Good day."}[name] for name in names] == texts
    assert len(orders) > 2
    votes = store.votes(store.project(PROJECT))
    assert all(sorted(vote.ranks) == [1, 2, 2] for vote in votes), "one is better than the others"


@pytest.mark.parametrize("is_bad", [False, True])
def test_a_tie_and_both_bad(is_bad: bool, store: Store) -> None:
    _, client = playground(store, base="Um.", sft="Er.")
    _, last = asked(client)
    chosen(client, last, None, is_bad)
    [vote] = store.votes(store.project(PROJECT))
    assert (vote.ranks, vote.is_both_bad) == ((1, 1), is_bad)


def test_models_that_say_the_same_share_an_answer(store: Store) -> None:
    _, client = playground(store, base="Um.", sft=" Um.\n", rlhf="Hello!")
    _, last = asked(client)
    assert last["of"] == [0, 0, 1]
    assert chosen(client, last, 1) == ["base, sft", "rlhf"]
    _, client = playground(store, base="Um.", sft="Um.")
    assert asked(client)[1]["task"] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": []}, 422),
        ({"messages": [{"role": "system", "content": "obey"}]}, 422),
        ({"messages": [{"role": "user", "content": ""}]}, 422),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, 422),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, 409),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 409),
        ("hello", 422),
    ],
)
def test_a_question_that_cannot_be_asked(body: object, status: int, store: Store) -> None:
    parrots, client = playground(store, base="Um.", sft="Hello!")
    assert client.post("/playground/ask", json=body).status_code == status
    assert parrots.told == []
    assert store.projects() == {}


def test_a_choice_that_there_is_not(store: Store) -> None:
    _, client = playground(store, base="Um.", sft="Hello!")
    _, last = asked(client)
    for body in ({"best": 2, "key": "a" * 32}, {"best": -1, "key": "a" * 32}, {"best": 0, "key": "short"}):
        assert client.post(f"/playground/tasks/{last['task']}/vote", json=body).status_code in (409, 422)
    assert client.post("/playground/tasks/99/vote", json={"best": 0, "key": "a" * 32}).status_code == 409
    assert store.votes(store.project(PROJECT)) == []


def test_who_wrote_what_is_told_in_the_playground_alone(store: Store) -> None:
    _, client = playground(store, base="Um.", sft="Hello!")
    asked(client)
    project = store.add_project("blind")
    store.add_items(project, [NewItem((Message("user", "hello"),), ("a", "b"), ("base", "sft"))])
    task = store.take(project, store.user_named("you"))
    answer = client.post(f"/playground/tasks/{task.assignment}/vote", json={"best": 0, "key": "a" * 32})
    assert (answer.status_code, "sft" in answer.text) == (409, False)
    assert store.votes(project) == []


def test_without_models_there_is_no_playground(store: Store) -> None:
    client = browser(store)
    assert "Playground" not in client.get("/").text
    assert "whelp playground" in client.get("/playground").text


def test_models_stop_where_nobody_listens() -> None:
    parrots = Parrots(base="x" * 1000)
    parrots.breath = threading.Semaphore(1)
    models = Playground(parrots, ["base"])
    heard = models.answers([Message("user", "hello")], ["base"])
    assert next(heard) == ("base", "x")
    heard.close()
    parrots.breath.release(1000)
    models.thread.shutdown(wait=True)
    assert parrots.letters <= 2, "the next letter was on its way"


def test_a_model_that_breaks_is_heard() -> None:
    class Broken(Parrots):
        def answers(self, messages, names, key):
            yield "base", "x"
            raise RuntimeError("out of memory")

    models = Playground(Broken(base="x"), ["base"])
    with pytest.raises(RuntimeError, match="out of memory"):
        list(models.answers([Message("user", "hello")], ["base"]))
