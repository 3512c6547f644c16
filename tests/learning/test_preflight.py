"""What is wrong is said before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_helpers import WORDS, changed, recipe_of, run, write_jsonl

from whelp import pipeline
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError, ModelError, RunError, WhelpError
from whelp.progress import SilentProgress
from whelp.splits import split_rankings


def refused(recipe: Recipe, message: str, error: type[WhelpError] = DataError) -> None:
    """It is refused by run and dry run alike, and nothing was written."""
    with pytest.raises(error, match=message):
        run(recipe)
    with pytest.raises(error, match=message):
        pipeline.plan(recipe, SilentProgress())
    assert not Path(recipe.output_dir).is_dir()


def test_an_evaluation_prompt_that_trains(recipe: Recipe, data: Path) -> None:
    refused(changed(recipe, "evaluate", prompts=str(data / "prompts.jsonl")), "8 of 8 evaluation prompts train a model")


def test_a_broken_line_of_the_last_stage(recipe: Recipe, tmp_path: Path) -> None:
    broken = write_jsonl(tmp_path / "evaluation.jsonl", [{"prompt": "hello", "check": {"kind": "refuse"}}])
    refused(changed(recipe, "evaluate", prompts=str(broken)), "evaluation.jsonl:1: check has the unknown kind 'refuse'")


def test_a_prompt_longer_than_the_context(recipe: Recipe, tmp_path: Path) -> None:
    prompts = write_jsonl(
        tmp_path / "long.jsonl", [{"id": "short", "prompt": "hi"}, {"id": "endless", "prompt": "x " * 200}]
    )
    refused(
        changed(recipe, "ppo", train_file=str(prompts), batch_size=2, num_mini_batches=1), "endless: 4\\d\\d tokens"
    )


def test_prompts_without_checks_where_checks_reward(recipe: Recipe) -> None:
    refused(changed(recipe, "ppo", reward="checker"), "8 of 8 prompts have no check")


@pytest.mark.parametrize(
    ("section", "fraction", "message"),
    [
        ("sft", 1.0, "9 demonstrations, of which sft.test_fraction 1.0 leaves none"),
        ("reward", 0.0, "36 rankings, of which 36 would train and 0 be held out"),
    ],
)
def test_a_split_without_one_of_its_sides(recipe: Recipe, section: str, fraction: float, message: str) -> None:
    without_judge = changed(recipe, "evaluate", judge=False)
    refused(changed(without_judge, section, test_fraction=fraction), message)


def test_conversations_that_begin_alike_stay_together(recipe: Recipe, tmp_path: Path) -> None:
    def asked(i: int) -> list[dict[str, str]]:
        begun = {"role": "user", "content": f"Hello  {WORDS[i % 9]}"}
        return [begun, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": f"the end {i}"}]

    rows = [{"prompt": asked(i), "chosen": "yes", "rejected": "nah"} for i in range(45)]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    split = split_rankings(changed(recipe, "reward", train_file=str(file)))
    train, held_out = ({r.prompt.messages[0].content for r in side} for side in (split.train, split.held_out))
    assert train and held_out
    assert not train & held_out


def test_a_shared_system_message_splits_as_well(recipe: Recipe, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "You are kind."},
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "hello"},
            ]
        }
        for i in range(40)
    ]
    file = write_jsonl(tmp_path / "system.jsonl", rows)
    sft = changed(recipe, "sft", train_file=str(file), test_fraction=0.3).model_copy(update={"stages": ("sft",)})
    metrics = run(sft).results["sft"]
    assert metrics["sequences"] + metrics["test_sequences"] == 40
    assert 4 <= metrics["test_sequences"] <= 20


def test_the_plan_prices_every_stage(recipe: Recipe) -> None:
    plan = pipeline.plan(recipe, SilentProgress())
    assert [row[0] for row in plan.rows] == ["sft", "reward", "judge", "ppo", "evaluate", "report"]
    assert all(row[2] > 0 and row[3] > 0 and row[5] == "runs" for row in plan.rows)
    assert not Path(recipe.output_dir).exists()
    run(recipe)
    again = pipeline.plan(recipe, SilentProgress())
    assert {row[5] for row in again.rows[:-1]} == {"unchanged"}
    assert sum(row[2] for row in again.rows[:-1]) == 0


def test_the_plan_reads_a_config_with_a_text_part(tiny_model_folder, data: Path, tmp_path: Path) -> None:
    from whelp.estimate import size_of

    folder = tiny_model_folder("llama")
    recipe = recipe_of(folder, data, tmp_path / "run")
    flat = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "multimodal", "text_config": flat}))
    assert size_of(tmp_path, recipe) == size_of(folder, recipe)


def test_a_language_model_where_a_reward_model_is_needed(recipe: Recipe, tiny_model_folder) -> None:
    """It would be given a head of random numbers."""
    policy, message = str(tiny_model_folder("llama")), "is a language model .* but a reward model is needed here"
    refused(changed(recipe, "ppo", reward_model=policy), message, ModelError)
    refused(changed(recipe, "rounds", n=1, label="model", label_model=policy), message, ModelError)


def test_code_that_is_not_allowed_or_not_there(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short(completions):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(ConfigError, match="--allow_code"):
        run(changed(recipe, "ppo", reward=f"{tmp_path}/mine.py:short"))
    other = changed(recipe, "ppo", reward=f"{tmp_path}/mine.py:nosuch")
    with pytest.raises(DataError, match="has no function nosuch"):
        pipeline.plan(other, SilentProgress(), allow_code=True)


def test_a_file_in_the_run_s_place(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/runs/a"):
        refused(
            recipe.model_copy(update={"output_dir": str(tmp_path / place)}),
            "file is a file, so no run can be kept",
            RunError,
        )


def test_what_is_refused_leaves_a_finished_run_as_it_was(recipe: Recipe) -> None:
    run(recipe.model_copy(update={"stages": ("sft",)}))
    manifest = Path(recipe.output_dir) / "manifest.json"
    before = manifest.read_bytes()
    with pytest.raises(DataError, match="8 of 8 prompts have no check"):
        run(changed(recipe, "ppo", reward="checker"))
    assert manifest.read_bytes() == before


def test_a_step_limit_makes_the_plan_of_a_reward_model_cheaper(recipe: Recipe) -> None:
    whole = {
        row[0]: row[2] for row in pipeline.plan(changed(recipe, "reward", num_train_epochs=20), SilentProgress()).rows
    }
    limited = changed(recipe, "reward", num_train_epochs=20, max_steps=1)
    cut = {row[0]: row[2] for row in pipeline.plan(limited, SilentProgress()).rows}
    assert cut["reward"] < whole["reward"] / 3
