"""Models from anywhere, compared by anyone: other vocabularies, addresses, people, and judges that may not judge."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import changed, run, write_jsonl
from tokenizers import AddedToken
from transformers import AutoTokenizer

from endpoint_server import Answer, listed, said, serving
from whelp import pipeline
from whelp.checkers import passes
from whelp.cli import show
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError
from whelp.progress import PlainProgress
from whelp.report import write_report


@pytest.fixture(autouse=True)
def _own_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHELP_DATABASE", str(tmp_path / "feedback.db"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def evaluate(recipe: Recipe, models: dict[str, str], *judges: str, **settings: object) -> tuple[dict[str, Any], str]:
    heard = io.StringIO()
    asked = changed(recipe, "evaluate", judges=judges, **settings).model_copy(update={"stages": ("evaluate",)})
    summary = pipeline.evaluate_models(asked, models, ["whelp", "evaluate"], False, PlainProgress(heard))
    return dict(summary.results["evaluate"]), heard.getvalue()


def other_vocabulary(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(to)
    tokenizer.add_tokens([AddedToken("zebra")])
    tokenizer.save_pretrained(to)
    return to


def test_a_model_of_another_vocabulary_answers_as_it_does_alone(
    recipe: Recipe, tiny_model_folder, tmp_path: Path
) -> None:
    first, second = tiny_model_folder("llama"), tiny_model_folder("llama", seed=1)
    other = other_vocabulary(second, tmp_path / "other")
    together, _ = evaluate(recipe, {"first": str(first), "other": str(other)})
    answers = texts(recipe)
    elsewhere = recipe.model_copy(update={"output_dir": str(tmp_path / "elsewhere")})
    alike, _ = evaluate(elsewhere, {"first": str(first), "other": str(second)})
    assert answers == texts(elsewhere)
    assert together["overall"] == alike["overall"]
    assert together["lengths"]["first"] == alike["lengths"]["first"]


FINE = "That is fine, and here is what you asked for, told slowly and in as many words as it takes."


def texts(recipe: Recipe) -> list[tuple[str, str, str]]:
    lines = (Path(recipe.output_dir) / "evaluate" / "completions.jsonl").read_text().splitlines()
    return [(row["id"], row["model"], row["completion"]) for row in map(json.loads, lines)]


def test_a_model_and_a_judge_behind_an_address_and_people(
    recipe: Recipe, tiny_model_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge prefers "yes yes yes", as the rankings do, and the answer that is fine."""
    better = ["fine", "yes yes yes"]
    assert passes({"kind": "helps", "any": ["fine"]}, FINE, True)

    def say(asked: str, _: int) -> Answer:
        if "(A)" not in asked:
            return said(FINE)
        a, b = halves(asked)
        first = 0.9 if any(word in a for word in better) else 0.1 if any(word in b for word in better) else 0.5
        return said("A", listed(("A", math.log(first)), ("B", math.log(1 - first))))

    models = {"first": str(tiny_model_folder("llama")), "second": str(tiny_model_folder("llama", seed=1))}
    with serving(say) as endpoint:
        behind = f"{endpoint.url}#tiny"
        result, heard = evaluate(recipe, {**models, "far": behind}, behind, trust_pairs=20)
        asked = len(endpoint.bodies)
        again = recipe.model_copy(update={"output_dir": str(tmp_path / "again")})
        assert evaluate(again, {**models, "far": behind}, behind, trust_pairs=20)[0] == result
        assert len(endpoint.bodies) == asked, "what was said is kept in the database"
    assert result["models"] == ["first", "second", "far"]
    assert result["overall"]["far"]["greedy"]["mean"] == 1.0, "the check wants the word fine"
    [judge] = result["preferences"]
    assert judge["judge"].startswith("tiny at 127.0.0.1:")
    assert judge["counted"] is True
    assert judge["versus"]["far over second"]["won"] == 9
    assert "agrees with people on" in heard
    assert result["elo"]["checks"]["far"]["mean"] > 1000 > result["elo"]["checks"]["first"]["mean"]
    assert max(result["elo"][judge["judge"]], key=lambda name: result["elo"][judge["judge"]][name]["mean"]) == "far"

    folder = Path(recipe.output_dir)
    rows = [json.loads(line) for line in (folder / "evaluate" / "to_rank.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    for row in rows:
        row["ranks"] = [1 if "fine" in text else 2 for text in row["completions"]]
    votes = write_jsonl(tmp_path / "votes.jsonl", rows[:6])
    with serving(say) as endpoint:
        people, _ = evaluate(recipe, {**models, "far": f"{endpoint.url}#tiny"}, str(votes))
    [one] = people["preferences"]
    assert (one["people"], one["judge"]) == (True, f"people, by {votes}")
    assert (one["versus"]["far over second"]["won"], one["versus"]["far over second"]["unread"]) == (6, 3)
    show.differences(people)
    out = capsys.readouterr().out
    assert f"people, by {votes}: far is preferred to second in 100%" in out
    assert "(6 won, 0 tied, 0 lost; 3 were not judged)." in out
    assert "Elo points, by checks" in out
    page = write_report(folder).read_text()
    assert "All models in one order" in page and f"people, by {votes}" in page


def halves(asked: str) -> tuple[str, str]:
    first, second = asked.split("(A)", 1)[1].split("(B)", 1)
    return first, second.split("Which of the two")[0]


def test_a_reward_model_may_not_judge_what_it_trained(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    trained = recipe.model_copy(update={"stages": ("sft", "reward", "ppo")})
    run(trained)
    folder = Path(recipe.output_dir)
    later = recipe.model_copy(update={"output_dir": str(tmp_path / "evaluated")})
    models = {"sft": str(folder / "sft"), "ppo": str(folder / "ppo")}
    with pytest.raises(DataError, match="it would prefer what that was trained for"):
        evaluate(later, models, str(folder / "reward"))
    assert not (tmp_path / "evaluated" / "evaluate").exists(), "it is refused before anything is spent"
    # One that learned from what the run held out may.
    held_out = changed(changed(trained, "evaluate", judge=True), "reward", test_fraction=0.3)
    run(
        held_out.model_copy(
            update={"output_dir": str(tmp_path / "whole"), "stages": ("sft", "reward", "ppo", "evaluate")}
        )
    )
    whole = tmp_path / "whole"
    models = {"sft": str(whole / "sft"), "ppo": str(whole / "ppo")}
    found, _ = evaluate(later, models, str(whole / "judge"))
    assert found["judge"] is not None


@pytest.mark.proof
def test_nor_may_one_of_the_same_rankings(recipe: Recipe, tmp_path: Path) -> None:
    trained = recipe.model_copy(update={"stages": ("sft", "reward", "ppo")})
    run(trained)
    folder = Path(recipe.output_dir)
    later = recipe.model_copy(update={"output_dir": str(tmp_path / "evaluated")})
    models = {"sft": str(folder / "sft"), "ppo": str(folder / "ppo")}
    copied = changed(trained, "reward", learning_rate=1e-3).model_copy(
        update={"output_dir": str(tmp_path / "copied"), "stages": ("sft", "reward")}
    )
    run(copied)
    with pytest.raises(DataError, match="it would prefer what that was trained for"):
        evaluate(later, models, str(tmp_path / "copied" / "reward"))


def test_two_reward_models_do_not_judge(recipe: Recipe, tiny_model_folder) -> None:
    with pytest.raises(ConfigError, match="names 2 reward models: a, b"):
        evaluate(recipe, {"m": str(tiny_model_folder("llama"))}, "a", "b")


def test_a_vendor_without_a_key_is_refused_before_anything_is_sampled(recipe: Recipe, tiny_model_folder) -> None:
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        evaluate(recipe, {"m": str(tiny_model_folder("llama"))}, "openai:gpt-4o-mini")
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        evaluate(recipe, {"m": "openai:gpt-4o-mini"})
