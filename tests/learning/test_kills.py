"""A run that is killed again and again, at any instant, ends in the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_helpers import recipe_of

from whelp.config import Recipe
from whelp.recipes import load_recipe
from whelp.runs.checkpoint import HASHES, checkpoints
from whelp.runs.files import sha256_file

SCRIPT = """
import os, signal, sys
import torch
from whelp import pipeline
from whelp.config import Recipe
from whelp.progress import SilentProgress

recipe, threads, moment = sys.argv[1:]
torch.set_num_threads(int(threads))
pipeline.clear_checkpoints = lambda folder: None  # the last one is compared
rename = os.rename

def deadly(source, target):
    if moment != "never" and ".tmp-" in str(source) and "ppo" in str(source):
        if moment == "after":
            rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

os.rename = deadly
pipeline.run(Recipe.model_validate_json(recipe), ["whelp", "run"], True, SilentProgress())
"""


def start(recipe: Recipe, threads: int, moment: str = "never") -> subprocess.Popen:
    """`moment`: kill itself before or after the first rename of one of PPO's checkpoints."""
    command = [sys.executable, "-c", SCRIPT, recipe.model_dump_json(), str(threads), moment]
    with Path(recipe.output_dir).with_suffix(".stderr").open("a") as errors:
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stderr=errors)


def finish(recipe: Recipe, threads: int) -> None:
    assert start(recipe, threads).wait() == 0, Path(recipe.output_dir).with_suffix(".stderr").read_text()


def lines_of(recipe: Recipe) -> int:
    log = Path(recipe.output_dir) / "ppo" / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_at_random(recipe: Recipe, threads: int, rng: random.Random, longest: float) -> None:
    """Up to `longest` seconds behind the moment at which PPO goes on."""
    process = start(recipe, threads)
    log = Path(recipe.output_dir) / "ppo" / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    while not log.exists() or log.stat().st_mtime_ns == before:
        assert process.poll() is None, Path(recipe.output_dir).with_suffix(".stderr").read_text()
        time.sleep(0.002)
    time.sleep(rng.uniform(0, longest))
    assert process.poll() is None, "it ended before it was killed: give it more episodes"
    process.kill()
    assert process.wait() == -signal.SIGKILL


def bits(recipe: Recipe) -> dict[str, str]:
    """Hashes of what every stage left: weights, metrics, samples, and weights and optimizers of the last checkpoint."""
    found = {}
    for stage in recipe.stages:
        folder = Path(recipe.output_dir) / stage
        for name in ("model.safetensors", "metrics.jsonl", "samples.jsonl"):
            if (folder / name).exists():
                found[f"{stage}/{name}"] = sha256_file(folder / name)
        last = checkpoints(folder)[-1]
        hashes = json.loads((last / HASHES).read_text())
        hashes.pop("state.json")  # it says how long the run took
        found |= {f"{stage}/{last.name}/{name}": value for name, value in hashes.items()}
    return found


def survive(whole: Recipe, killed: Recipe, threads: int, kills: int, longest: float) -> None:
    finish(whole, threads)
    rng = random.Random(7)
    moments = ["before", "after", *[None] * (kills - 2)]
    rng.shuffle(moments)
    for moment in moments:
        if moment is None:
            kill_at_random(killed, threads, rng, longest)
        else:
            assert start(killed, threads, moment).wait() == -signal.SIGKILL
    assert not (Path(killed.output_dir) / "ppo" / "DONE.json").exists()
    reached = lines_of(killed)
    finish(killed, threads)
    assert 0 < reached < lines_of(killed)
    left = bits(whole)
    assert {"ppo/model.safetensors", "ppo/metrics.jsonl", "ppo/samples.jsonl"} < left.keys()
    assert sum("checkpoint" in name for name in left if name.startswith("ppo/")) == 2, "policy and critic"
    assert bits(killed) == left


@pytest.mark.proof
def test_twenty_kills(tiny_model_folder: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    settings = {"total_episodes": 8 * 400, "save_steps": 3, "learning_rate": 1e-3, "normalize_scores": True}
    whole, killed = (
        recipe_of(tiny_model_folder("llama"), data, tmp_path / name, **settings).model_copy(
            update={"stages": ("sft", "reward", "ppo")}
        )
        for name in ("whole", "killed")
    )
    survive(whole, killed, threads=1, kills=20, longest=0.5)


@pytest.mark.proof
def test_three_kills_of_the_default_model(tmp_path: Path) -> None:
    settings = [
        "stages=[ppo]", "ppo.reward=checker", "ppo.total_episodes=128", "ppo.batch_size=8", "ppo.num_mini_batches=2",
        "ppo.response_length=16", "ppo.save_steps=1", "trainable_layers=2",
    ]  # fmt: skip
    whole, killed = (
        load_recipe("assistant", [*settings, f"output_dir={tmp_path / name}"]) for name in ("whole", "killed")
    )
    survive(whole, killed, threads=2, kills=3, longest=8.0)
