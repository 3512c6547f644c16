"""The whole pipeline on a tiny random model: every stage, reruns, kills, Ctrl-C and bad input."""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pipeline_helpers import changed, recipe_of, run, states
from safetensors.torch import load_file

from whelp.config import Recipe
from whelp.errors import DataError, Interrupted, RunError, TrainingError
from whelp.runs.metrics import MetricsLog


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


def test_sft_trains_twice_the_layers_unless_told_otherwise(recipe: Recipe) -> None:
    def moved(before: Path, after: Path) -> set[int]:
        one, other = (load_file(folder / "model.safetensors") for folder in (before, after))
        changed = {name for name in one if name.startswith("model.layers.") and not torch.equal(one[name], other[name])}
        return {int(name.split(".")[2]) for name in changed}

    folder, base = Path(recipe.output_dir), Path(recipe.model)
    one = recipe.model_copy(update={"trainable_layers": 1, "stages": ("sft",)})
    run(one)
    assert moved(base, folder / "sft") == {2, 3}
    run(changed(one, "sft", trainable_layers=1))
    assert moved(base, folder / "sft") == {3}


def test_dpo_learns_from_the_rankings_alone_and_is_judged_by_the_other_half(recipe: Recipe) -> None:
    alone = changed(recipe, "dpo", num_train_epochs=3, learning_rate=3e-3)
    alone = alone.model_copy(update={"stages": ("sft", "dpo", "evaluate", "report")})
    summary = run(alone)
    folder = Path(recipe.output_dir)
    assert states(summary) == dict.fromkeys(["sft", "dpo", "judge", "evaluate"], "ran")
    assert {line["model"] for line in MetricsLog.read(folder / "evaluate" / "completions.jsonl")} == {
        "base",
        "sft",
        "dpo",
    }
    losses = [line["loss"] for line in MetricsLog.read(folder / "dpo" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4), "at first the policy is its own reference"
    assert min(losses[-3:]) < losses[0]
    assert {"accuracy", "margin", "n"} <= set(summary.results["dpo"])
    assert summary.results["evaluate"]["kl"]["dpo"]["mean"] != 0
    assert summary.results["evaluate"]["judge"]["versus"] == "dpo over sft"
    assert "DPO" in summary.report.read_text()


@pytest.mark.proof
def test_dpo_runs_again_where_its_split_changes_and_stands_beside_ppo(recipe: Recipe) -> None:
    alone = changed(recipe, "evaluate", judge=False).model_copy(update={"stages": ("sft", "dpo")})
    run(alone)
    assert states(run(alone))["dpo"] == "unchanged"
    assert states(run(changed(alone, "reward", test_fraction=0.4)))["dpo"] == "ran"
    assert states(run(changed(alone, "reward", test_fraction=0.4, contradictions="drop")))["dpo"] == "ran"
    both = recipe.model_copy(update={"stages": ("sft", "reward", "ppo", "dpo", "evaluate", "report")})
    evaluation = run(both).results["evaluate"]
    assert set(evaluation["differences"]) == {"sft - base", "rlhf - sft", "dpo - rlhf", "dpo - sft"}
    assert evaluation["judge"]["versus"] == "rlhf over sft"
    assert set(evaluation["kl"]) == {"rlhf", "dpo"}


def test_the_reward_model_is_trained_again_where_the_unit_of_its_reward_changes(recipe: Recipe) -> None:
    some = recipe.model_copy(update={"stages": ("sft", "reward")})
    run(some)
    assert states(run(changed(some, "ppo", kl_coef=0.3)))["reward"] == "unchanged"
    assert states(run(changed(some, "ppo", temperature=0.5)))["reward"] == "ran"


@pytest.mark.proof
def test_the_judge_starts_raw_and_learns_twice_as_long(recipe: Recipe) -> None:
    results = run(recipe).results
    per_epoch = [
        -(-results[name]["train_prompts"] // recipe.reward.per_step_batch_size) for name in ("reward", "judge")
    ]
    epochs = recipe.reward.num_train_epochs
    assert [results[name]["steps"] for name in ("reward", "judge")] == [
        per_epoch[0] * epochs,
        per_epoch[1] * epochs * 2,
    ]
    manifest = json.loads((Path(recipe.output_dir) / "manifest.json").read_text())
    assert manifest["inputs"]["judge"]["model"]["path"] == recipe.model


def test_the_judge_has_its_share_of_the_rankings_and_the_reward_model_the_rest(recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"stages": ("reward", "evaluate")})
    share = {}
    for fraction in (0.3, 0.7):
        summary = run(changed(recipe, "evaluate", judge_fraction=fraction))
        assert {states(summary)[name] for name in ("reward", "judge")} == {"ran"}
        learned = [summary.results[name]["train_prompts"] for name in ("reward", "judge")]
        assert sum(learned) == 36
        share[fraction] = learned[1] / 36
    assert share[0.3] < 0.5 < share[0.7]


def test_nothing_is_run_twice_and_a_change_runs_what_it_touches(recipe: Recipe) -> None:
    run(recipe)
    assert set(states(run(recipe)).values()) == {"unchanged"}
    other = changed(recipe, "ppo", kl_coef=0.2)
    again = states(run(other))
    assert again == {"sft": "unchanged", "reward": "unchanged", "judge": "unchanged", "ppo": "ran", "evaluate": "ran"}
    saving = changed(other, "ppo", save_steps=5)
    assert states(run(saving))["ppo"] == "unchanged", "how often is saved changes no result"


def test_a_test_file_that_shares_prompts_is_refused(recipe: Recipe, data: Path) -> None:
    same = changed(recipe, "reward", test_file=str(data / "rankings.jsonl"))
    with pytest.raises(DataError, match="also stand in"):
        run(same)


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

NURSERY = """
import json, os, sys, traceback
import torch
import transformers.models.llama.modeling_llama
from whelp import pipeline, report
from whelp.config import Recipe
from whelp.progress import SilentProgress
torch.set_num_threads(1)
for line in sys.stdin:
    recipe, resume, errors = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    try:
        pipeline.run(Recipe.model_validate_json(recipe), ["whelp", "run"], resume, SilentProgress())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""
"""Imports once, which takes longer than a run, and runs each recipe in a process of its own."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # what was not asked for stays in the pipe, where `select` sees it
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


class Child:
    """A run in a process of its own; one at a time."""

    def __init__(self, nursery: subprocess.Popen[bytes], recipe: Recipe, resume: bool = False):
        self.nursery = nursery
        nursery.stdin.write(json.dumps([recipe.model_dump_json(), resume, str(errors_of(recipe))]).encode() + b"\n")
        self.pid = int(nursery.stdout.readline())

    def is_running(self) -> bool:
        return not select.select([self.nursery.stdout], [], [], 0)[0]

    def wait(self) -> int:
        return int(self.nursery.stdout.readline())

    def kill(self, how: signal.Signals) -> int:
        os.kill(self.pid, how)
        return self.wait()


def errors_of(recipe: Recipe) -> Path:
    return Path(recipe.output_dir).with_suffix(".stderr")


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(child: Child, recipe: Recipe, lines: int, stage: str = "ppo", log: str = "metrics.jsonl") -> None:
    """Until the stage has logged so many lines."""
    while lines_in(Path(recipe.output_dir) / stage / log) < lines:
        assert child.is_running(), f"ended before line {lines}: {errors_of(recipe).read_text()}"
        time.sleep(0.005)


def bits(folder: Path) -> dict[str, str]:
    names = ("model.safetensors", "metrics.jsonl", "samples.jsonl")
    files = [file for name in names if (file := folder / name).exists()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(nursery, tiny_model_folder, data: Path, tmp_path: Path) -> None:
    whole, killed = (recipe_of(tiny_model_folder("llama"), data, tmp_path / name) for name in ("whole", "killed"))
    assert Child(nursery, whole).wait() == 0, errors_of(whole).read_text()
    for stage, lines in (("sft", 1), ("reward", 2), ("ppo", 3), ("ppo", 5)):  # 3 is right behind a checkpoint, 5 is not
        child = Child(nursery, killed, resume=True)
        wait_for(child, killed, lines, stage)
        assert child.kill(signal.SIGKILL) == -signal.SIGKILL
    assert not (Path(killed.output_dir) / "ppo" / "DONE.json").exists()
    with pytest.raises(RunError, match="--resume"):
        run(killed)
    child = Child(nursery, killed, resume=True)
    wait_for(child, killed, 10, "evaluate", "completions.jsonl")
    assert child.kill(signal.SIGKILL) == -signal.SIGKILL
    assert not (Path(killed.output_dir) / "evaluate" / "DONE.json").exists()
    assert Child(nursery, killed, resume=True).wait() == 0, errors_of(killed).read_text()
    for stage in ("sft", "reward", "ppo"):
        assert bits(Path(killed.output_dir) / stage) == bits(Path(whole.output_dir) / stage)
    assert bits_of_evaluation(killed) == bits_of_evaluation(whole)


def bits_of_evaluation(recipe: Recipe) -> bytes:
    return (Path(recipe.output_dir) / "evaluate" / "completions.jsonl").read_bytes()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(nursery, tiny_model_folder, data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_model_folder("llama"), data, tmp_path / "run", save_steps=1000)
    child = Child(nursery, recipe)
    wait_for(child, recipe, 2)
    assert child.kill(signal.SIGINT) != 0
    assert Interrupted.__name__ in errors_of(recipe).read_text()
    (checkpoint,) = (Path(recipe.output_dir) / "ppo").glob("checkpoint-*")
    assert int(checkpoint.name.removeprefix("checkpoint-")) >= 2
    assert states(run(recipe, resume=True))["ppo"] == "resumed"
