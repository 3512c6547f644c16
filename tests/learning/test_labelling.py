"""The loop around people's votes, on tiny models: what a model said is ranked, learned from, and asked anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pipeline_helpers import WORDS, write_jsonl
from sqlalchemy import select
from typer.testing import CliRunner

from whelp.cli import app
from whelp.conversation import Panel, Speaker
from whelp.engines.base import SamplingParams
from whelp.errors import DataError
from whelp.feedback.judgements import Judgement
from whelp.feedback.schema import Item
from whelp.feedback.store import Store
from whelp.labelling import doubt
from whelp.runs.files import read_json
from whelp.text.items import items_of
from whelp.types import Message, Prompt


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHELP_DATABASE", "feedback.db")


def whelp(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["annotate", *arguments])
    assert result.exit_code == code, result.output
    return result.output


# -- a model answers --------------------------------------------------------------------------------------------------


def test_what_a_model_says_becomes_items(tiny_model_folder, tmp_path: Path) -> None:
    model = str(tiny_model_folder("llama"))
    file = str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": word, "category": "talk"} for word in WORDS]))
    options = ["--model", model, "--n", "3", "--max_new_tokens", "4"]
    said = whelp("sample", "p", file, *options, "--overlap", "2")
    assert "p: 9 new items of 9 prompts" in said
    store = Store("feedback.db")
    items = store.items(1)
    assert store.rules(1).overlap == 2
    assert sorted(item.messages[-1].content for item in items) == sorted(WORDS)
    assert all(2 <= len(set(item.completions)) == len(item.completions) <= 3 for item in items)
    assert {source for item in items for source in item.sources} == {model}
    assert {item.category for item in items} == {"talk"}
    assert "p: 0 new items" in whelp("sample", "p", file, *options), "the same seed says the same"
    assert "p: 9 new items" in whelp("sample", "p", file, *options, "--seed", "1")
    assert "4 new items of 4 prompts" in whelp("sample", "q", file, *options, "--limit", "4")
    greedy = whelp("sample", "r", file, *options, "--temperature", "0")
    assert "9 prompts to which the model had one answer only" in greedy
    store.close()


def test_an_answer_of_no_words_is_not_ranked() -> None:
    prompts = [Prompt(id, (Message("user", id),)) for id in ("one", "two")]
    [item] = items_of(prompts, {"one": ["", "a ", " ", "b", "a"], "two": ["", "b"]}, "m")
    assert (item.messages, item.completions) == (prompts[0].messages, ("a", "b"))


# -- what it doubts ---------------------------------------------------------------------------------------------------


def test_doubt_is_nothing_where_all_is_clear_and_one_where_nothing_is() -> None:
    zero = torch.zeros(2, 2)
    assert doubt(torch.tensor([[40.0, 0.0]] * 2), zero) == pytest.approx(0, abs=1e-6)
    assert doubt(zero, zero) == 1.0
    sure, unsure = (doubt(torch.tensor([[2.0, 0.0]]), torch.full((1, 2), v)) for v in (0.0, 5.0))
    assert sure < unsure, "the posterior of the head"
    agreed, split = (doubt(torch.tensor(rows), zero) for rows in ([[2.0, 0.0]] * 2, [[6.0, 0.0], [-2.0, 0.0]]))
    assert agreed < split, "the members are at odds"
    three = torch.tensor([[9.0, 9.0, -50.0]])
    assert doubt(three, torch.zeros(1, 3)) == pytest.approx(1 / 3, abs=1e-3), "one pair of three is open"


# -- people rank, it learns, and asks anew ----------------------------------------------------------------------------


def judged(store: Store, project: int, user: str, like: str, count: int) -> None:
    """Prefers the answer that says `like`."""
    id = store.user_named(user) or store.add_user(user, "annotator")
    for _ in range(count):
        task = store.take(project, id)
        assert task is not None
        ranks = tuple(1 if like in text else 2 for text in task.completions)
        store.submit(id, task.assignment, Judgement("vote", ranks), f"{user}-{task.assignment}-request")


def test_label_train_and_what_it_is_least_sure_of_comes_first(tiny_model_folder, tmp_path: Path) -> None:
    clear = [
        {"prompt": f"rank {w} {i}", "completions": ["yes yes yes", "nah nah nah"]} for i in range(8) for w in WORDS
    ]
    open_ = [
        {"prompt": f"rank {w} {i}", "completions": ["hmm hmm hmm", "two two two"]} for i in range(2) for w in WORDS
    ]
    whelp("import", "p", str(write_jsonl(tmp_path / "a.jsonl", clear)))
    store = Store("feedback.db")
    judged(store, 1, "ann", "yes", 9)
    model = ["--model", str(tiny_model_folder("llama"))]
    fast = ["trainable_layers=2", "dtype=float32", "reward.learning_rate=3e-3"]
    refused = whelp("train", "p", *model, *fast, code=2)
    assert "there are 9 votes, and a reward model needs 10" in refused
    judged(store, 1, "ann", "yes", 41)
    whelp("import", "p", str(write_jsonl(tmp_path / "b.jsonl", open_)))
    said = whelp("train", "p", *model, *fast)
    assert "p: 40 items are asked for in a new order" in said
    learned = read_json(tmp_path / "runs" / "annotate-1" / "reward" / "metrics.json")
    assert learned["accuracy"] == 1.0
    assert [one["prompts"] < learned["train_prompts"] for one in learned["learning_curve"]] == [True, True, False]
    asked = []
    bob = store.add_user("bob", "annotator")
    while (task := store.take(1, bob)) is not None:
        asked.append("hmm hmm hmm" in task.completions)
        store.submit(bob, task.assignment, Judgement("skip"), f"bob-{task.assignment}-request")
    assert (len(asked), sum(asked)) == (40, 18)
    assert all(asked[:15]), "what it never saw ranked comes before what it knows"
    assert whelp("shuffle", "p")
    cem = store.add_user("cem", "annotator")
    at_random = []
    while (task := store.take(1, cem)) is not None:
        at_random.append(task.messages[0].content)
        store.submit(cem, task.assignment, Judgement("skip"), f"cem-{task.assignment}-request")
    with store.reading() as session:
        drawn = session.scalars(select(Item).where(~Item.is_full).order_by(Item.shuffle))
        assert at_random == [item.messages[0]["content"] for item in drawn], "the order drawn when they came in"
    store.close()


def test_what_people_are_at_odds_about_comes_first(tiny_model_folder, tmp_path: Path) -> None:
    rows = [{"prompt": f"rank {w} {i}", "completions": ["yes yes yes", "nah nah nah"]} for i in range(4) for w in WORDS]
    whelp("import", "p", str(write_jsonl(tmp_path / "a.jsonl", rows)), "--overlap", "3")
    store = Store("feedback.db")
    judged(store, 1, "ann", "yes", 36)
    judged(store, 1, "bob", "yes", 30)
    judged(store, 1, "bob", "nah", 6)
    odd = {vote.item for vote in store.votes(1) if vote.user == "bob" and vote.ranks == (2, 1)}
    model = ["--model", str(tiny_model_folder("llama"))]
    whelp(
        "train", "p", *model, "trainable_layers=2", "dtype=float32", "reward.learning_rate=3e-3", "reward.max_steps=4"
    )
    cem = store.add_user("cem", "annotator")
    first = set()
    texts = {item.messages[-1].content: item.id for item in store.items(1)}
    for _ in range(6):
        task = store.take(1, cem)
        first.add(texts[task.messages[-1].content])
        store.submit(cem, task.assignment, Judgement("skip"), f"cem-{task.assignment}-request")
    assert first == odd
    store.close()


# -- talking ----------------------------------------------------------------------------------------------------------


def test_a_panel_takes_turns_and_says_what_each_model_says_alone(tiny_model_folder) -> None:
    models = {name: str(tiny_model_folder("llama", seed=seed)) for name, seed in (("a", 0), ("b", 1))}
    params = SamplingParams(1, 1.0, 12, ("p",))
    panel, messages = Panel(models, params), [Message("user", "hello")]
    heard = list(panel.answers(messages, ["b", "a"], ("k",)))
    assert [name for name, _ in heard[:4]] == ["b", "a", "b", "a"]
    for name, model in models.items():
        alone = "".join(Speaker(model, params).answer(messages, ("k",)))
        assert "".join(piece for who, piece in heard if who == name) == alone
    assert list(panel.answers(messages, ["b", "a"], ("k",))) == heard
    assert list(panel.answers(messages, ["b", "a"], ("other",))) != heard
    with pytest.raises(DataError, match="leave no room"):
        panel.refuse_long([Message("user", "x " * 200)])


def test_models_of_a_run(tmp_path: Path) -> None:
    from whelp.cli.base import run_models
    from whelp.errors import ConfigError

    with pytest.raises(ConfigError, match="no run in"):
        run_models(tmp_path / "x")
    for folder in ("sft", "ppo", "ppo-1"):
        (tmp_path / "x" / folder).mkdir(parents=True)
    manifest = {"recipe": {"model": "some/base", "rounds": {"n": 2}}}
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    folders = {"sft": str(tmp_path / "x" / "sft"), "rlhf": str(tmp_path / "x" / "ppo-1")}
    assert run_models(tmp_path / "x") == {"base": "some/base", **folders}
