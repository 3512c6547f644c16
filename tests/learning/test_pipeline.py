"""The whole pipeline on a tiny random model: every stage, reruns, kills, Ctrl-C and bad input."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whelp import pipeline
from whelp.config import Recipe
from whelp.errors import DataError, Interrupted, RunError, TrainingError
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog

WORDS = ["hello there", "how are you", "the end", "two and two", "i am fine", "today", "four", "an end", "you are"]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "demos.jsonl", [{"prompt": f"say {w}", "completion": f"{w} {w}."} for w in WORDS])
    answers = ["yes", "nah", "hmm"]  # alike on the surface, so that nothing but the words can be learned
    write_jsonl(
        folder / "rankings.jsonl",
        [
            {"prompt": f"rank {w} {i}", "completions": [f"{a} {a} {a}" for a in answers], "ranks": [1, 2 + i % 2, 2]}
            for i in range(4)
            for w in WORDS
        ],
    )
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"talk of {w}"} for w in WORDS[:8]])
    check = {"kind": "helps", "any": ["fine"]}
    write_jsonl(
        folder / "evaluation.jsonl", [{"prompt": f"tell me {w}", "category": "howto", "check": check} for w in WORDS]
    )
    return folder


@pytest.fixture
def recipe(tiny_model_folder, data: Path, tmp_path: Path) -> Recipe:
    return recipe_of(tiny_model_folder("llama"), data, tmp_path / "run")


def recipe_of(model: Path, data: Path, output_dir: Path, **ppo: object) -> Recipe:
    settings = {
        "total_episodes": 48, "batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 2, "response_length": 6,
        "save_steps": 2, "train_file": str(data / "prompts.jsonl"),
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "model": str(model),
            "output_dir": str(output_dir),
            "trainable_layers": 2,
            "dtype": "float32",
            "sft": {"train_file": str(data / "demos.jsonl"), "num_train_epochs": 1, "per_step_batch_size": 4},
            "reward": {"train_file": str(data / "rankings.jsonl"), "num_train_epochs": 3, "learning_rate": 3e-3},
            "ppo": settings | ppo,
            "evaluate": {"prompts": str(data / "evaluation.jsonl"), "max_new_tokens": 6},
        }
    )


def run(recipe: Recipe, resume: bool = False) -> pipeline.RunSummary:
    return pipeline.run(recipe, ["whelp", "run"], resume, SilentProgress())


def changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    part = getattr(recipe, section)
    return recipe.model_copy(update={section: part.model_copy(update=values)})


def states(summary: pipeline.RunSummary) -> dict[str, str]:
    return {cost.stage: cost.state for cost in summary.costs}


def test_every_stage_leaves_what_it_should(recipe: Recipe) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    summary = run(recipe)
    folder = Path(recipe.output_dir)
    assert states(summary) == dict.fromkeys(["sft", "reward", "judge", "ppo", "evaluate"], "ran")
    assert summary.report == folder / "report.html"
    assert "base" in summary.report.read_text()
    for name in ("sft", "ppo"):
        AutoModelForCausalLM.from_pretrained(folder / name)
        assert AutoTokenizer.from_pretrained(folder / name).chat_template
    for name in ("reward", "judge"):
        assert AutoModelForSequenceClassification.from_pretrained(folder / name).config.num_labels == 1
        assert {"accuracy", "margin", "loss", "n", "verdict"} <= set(summary.results[name])
    assert len(MetricsLog.read(folder / "ppo" / "metrics.jsonl")) == 6
    completions = MetricsLog.read(folder / "evaluate" / "completions.jsonl")
    assert {line["model"] for line in completions} == {"base", "sft", "rlhf"}
    assert not list(folder.glob("*/checkpoint-*")), "a finished stage keeps no resume state"
    evaluation = summary.results["evaluate"]
    assert evaluation["n_prompts"] == 9
    assert evaluation["kl"]["rlhf"]["n"] == 9
    assert evaluation["judge"]["versus"] == "rlhf over sft"


def test_nothing_is_run_twice_and_a_change_runs_what_it_touches(recipe: Recipe) -> None:
    run(recipe)
    assert set(states(run(recipe)).values()) == {"unchanged"}
    other = changed(recipe, "ppo", kl_coef=0.2)
    again = states(run(other))
    assert again == {"sft": "unchanged", "reward": "unchanged", "judge": "unchanged", "ppo": "ran", "evaluate": "ran"}
    saving = changed(other, "ppo", save_steps=5)
    assert states(run(saving))["ppo"] == "unchanged", "how often is saved changes no result"


def test_an_evaluation_prompt_that_was_trained_on_is_refused(recipe: Recipe, data: Path) -> None:
    trained = changed(recipe, "evaluate", prompts=str(data / "prompts.jsonl"))
    with pytest.raises(DataError, match="8 of 8 evaluation prompts were trained on"):
        run(trained)


def test_a_test_file_that_shares_prompts_is_refused(recipe: Recipe, data: Path) -> None:
    same = changed(recipe, "reward", test_file=str(data / "rankings.jsonl"))
    with pytest.raises(DataError, match="also stand in"):
        run(same)


def test_a_prompt_longer_than_the_context_is_named(recipe: Recipe, tmp_path: Path) -> None:
    prompts = write_jsonl(
        tmp_path / "long.jsonl", [{"id": "short", "prompt": "hi"}, {"id": "endless", "prompt": "x " * 200}]
    )
    with pytest.raises(DataError, match="endless"):
        run(changed(recipe, "ppo", train_file=str(prompts), batch_size=2, num_mini_batches=1))


def test_a_reward_model_below_its_surface_baseline_is_refused(recipe: Recipe) -> None:
    first = recipe.model_copy(update={"stages": ("sft", "reward")})
    run(first)
    file = Path(recipe.output_dir) / "reward" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["advantage"] = {"mean": -0.2, "low": -0.3, "high": -0.1, "n": 9}
    file.write_text(json.dumps(metrics))
    with pytest.raises(TrainingError, match="PPO refuses this reward model"):
        run(recipe.model_copy(update={"stages": ("sft", "reward", "ppo")}))


# -- killed, and resumed ----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import torch
from whelp import pipeline
from whelp.config import Recipe
from whelp.progress import SilentProgress
torch.set_num_threads(1)
pipeline.run(Recipe.model_validate_json(sys.argv[1]), ["whelp", "run"], "--resume" in sys.argv, SilentProgress())
"""


def start(recipe: Recipe, *flags: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, recipe.model_dump_json(), *flags]
    with errors_of(recipe).open("a") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def errors_of(recipe: Recipe) -> Path:
    return Path(recipe.output_dir).with_suffix(".stderr")


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(process: subprocess.Popen, recipe: Recipe, lines: int) -> None:
    """Until PPO has logged so many iterations."""
    while lines_in(Path(recipe.output_dir) / "ppo" / "metrics.jsonl") < lines:
        assert process.poll() is None, f"ended before line {lines}: {errors_of(recipe).read_text()}"
        time.sleep(0.005)


def bits(folder: Path) -> dict[str, str]:
    names = ("model.safetensors", "metrics.jsonl", "samples.jsonl")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tiny_model_folder, data: Path, tmp_path: Path) -> None:
    whole, killed = (recipe_of(tiny_model_folder("llama"), data, tmp_path / name) for name in ("whole", "killed"))
    reference = start(whole)
    assert reference.wait() == 0, errors_of(whole).read_text()
    for lines in (3, 5):  # once right behind a checkpoint, once between two
        process = start(killed, "--resume")
        wait_for(process, killed, lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (Path(killed.output_dir) / "ppo" / "DONE.json").exists()
    with pytest.raises(RunError, match="--resume"):
        run(killed)
    final = start(killed, "--resume")
    assert final.wait() == 0, errors_of(killed).read_text()
    assert bits(Path(killed.output_dir) / "ppo") == bits(Path(whole.output_dir) / "ppo")
    assert bits_of_evaluation(killed) == bits_of_evaluation(whole)


def bits_of_evaluation(recipe: Recipe) -> bytes:
    return (Path(recipe.output_dir) / "evaluate" / "completions.jsonl").read_bytes()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tiny_model_folder, data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_model_folder("llama"), data, tmp_path / "run", save_steps=1000)
    process = start(recipe)
    wait_for(process, recipe, 2)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert Interrupted.__name__ in errors_of(recipe).read_text()
    (checkpoint,) = (Path(recipe.output_dir) / "ppo").glob("checkpoint-*")
    assert int(checkpoint.name.removeprefix("checkpoint-")) >= 2
    assert states(run(recipe, resume=True))["ppo"] == "resumed"
