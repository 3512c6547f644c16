"""`torchrun -m whelp run` makes what `whelp run` makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import changed, run
from safetensors.torch import load_file

from whelp.config import Recipe

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "whelp"]


def elsewhere(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.model_copy(update={"output_dir": str(folder)})


def command(recipe: Recipe, file: Path, *options: str) -> list[str]:
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))  # JSON is YAML
    return [*TORCHRUN, "run", str(file), *options]


def ends_well(*arguments: str) -> None:
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-5000:] + ended.stdout[-2000:]


def steps(folder: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "time" not in key and "second" not in key} for row in rows]


@pytest.mark.proof
def test_two_processes_make_the_run_of_one(recipe: Recipe, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(elsewhere(recipe, alone))
    ends_well(*command(elsewhere(recipe, together), tmp_path / "recipe.yaml"))
    for stage in ("sft", "reward", "ppo"):
        for found, expected in zip(steps(together, stage), steps(alone, stage), strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), stage
        one, other = (load_file(folder / stage / "model.safetensors") for folder in (together, alone))
        for name, tensor in other.items():
            torch.testing.assert_close(one[name], tensor, rtol=1e-3, atol=1e-4)
    assert (together / "report.html").exists()


@pytest.mark.proof
def test_a_run_that_lost_a_process_ends_and_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """The other processes do not wait for it; behind the last checkpoint the run goes on, and in one process too."""
    recipe = changed(elsewhere(recipe, tmp_path / "run"), "ppo", total_episodes=400)
    started = command(recipe, tmp_path / "recipe.yaml")
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "run" / "ppo"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("checkpoint-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    victim = subprocess.run(
        ["pgrep", "-f", f"whelp run {tmp_path / 'recipe.yaml'}"], capture_output=True, text=True, check=True
    )
    workers = [int(pid) for pid in victim.stdout.split() if int(pid) != process.pid]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    run(recipe, resume=True)
    assert len(steps(tmp_path / "run", "ppo")) == 400 // 8
