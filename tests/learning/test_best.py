"""PPO with a second opinion: the policy is kept that somebody likes best who teaches it nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipeline_helpers import changed, run
from test_guard import _weights
from test_ppo import PROMPTS, config_of, engine_on, share_of_wanted

from whelp.config import Recipe
from whelp.engines.devices import Compute
from whelp.errors import ConfigError, Interrupted
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog
from whelp.stages import best, ppo
from whelp.stages.context import Stage
from whelp.text.chat import Chat

ITERATIONS, PEAK = 8, 0.025


def enough(completions, held) -> torch.Tensor:
    """Likes a little of what PPO is paid for, in all answers together."""
    share = share_of_wanted(completions, held)
    return torch.full_like(share, -float((share.mean() - PEAK).abs()))


class Stopping(Stage):
    stop_behind: int | None = None

    def heed(self, step: int, total: int) -> None:
        if step == self.stop_behind:
            raise Interrupted("asked to")
        super().heed(step, total)


@pytest.fixture
def trained(tiny_model_folder: Callable[..., Path], chat: Chat, compute: Compute, tmp_path: Path):
    """Train with a second opinion; returns (result, log, engine, stage)."""

    def run(where: str = "run", opinion: Callable | None = enough, stop_behind: int | None = None, **changes):
        settings = {"total_episodes": 64 * ITERATIONS, "num_generations": 4, "save_steps": 1, "learning_rate": 3e-2}
        config = config_of(watch="off", **settings | changes)
        engine = engine_on(tiny_model_folder("llama"), chat, compute)
        stage = Stopping(tmp_path / where, SilentProgress(), 0, config.save_steps)
        stage.stop_behind = stop_behind
        result = ppo.train(engine, chat, PROMPTS, share_of_wanted, config, stage, second_opinion=opinion)
        return result, MetricsLog.read(stage.folder / "metrics.jsonl"), engine, stage

    return run


def test_the_policy_that_is_liked_best_is_kept(trained) -> None:
    result, log, engine, stage = trained()
    said = [line["objective/second_opinion"] for line in log]
    assert 1 <= result["kept"] == 1 + said.index(max(said)) < ITERATIONS, "PPO went past the peak"
    kept = _weights(engine)
    again, *_, other, _ = trained("shorter", None, total_episodes=64 * ITERATIONS)
    assert "kept" not in again
    assert not torch.equal(kept, _weights(other)), "without a second opinion the last one is"
    state = json.loads((stage.folder / best.FOLDER / "state.json").read_text())
    assert state["step"] == result["kept"]
    engine.load_state(stage.folder / best.FOLDER)
    assert torch.equal(kept, _weights(engine))


@pytest.mark.proof
def test_a_second_opinion_changes_no_other_number(trained) -> None:
    _, log, *_ = trained("with")
    _, plain, *_ = trained("without", None)
    for line in log:
        line.pop("objective/second_opinion")
    assert log == plain


def test_checkpoints_far_apart_are_judged_by_all_answers_between(trained) -> None:
    result, log, *_ = trained(save_steps=3)
    said = [line["objective/second_opinion"] for line in log]
    means = {3: sum(said[:3]) / 3, 6: sum(said[3:6]) / 3, 8: sum(said[6:]) / 2}
    assert result["kept"] == max(means, key=lambda step: means[step])


@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.proof), 3, pytest.param(7, marks=pytest.mark.proof)]
)
def test_it_resumes_to_the_same_bits(trained, stop: int) -> None:
    result, whole, engine, _ = trained("whole", save_steps=2)
    with pytest.raises(Interrupted):
        trained("stopped", stop_behind=stop, save_steps=2)
    again, log, other, _ = trained("stopped", save_steps=2)
    assert (again["kept"], log) == (result["kept"], whole)
    assert torch.equal(_weights(engine), _weights(other))


def test_a_run_hears_its_own_judge(recipe: Recipe, tmp_path: Path) -> None:
    asked = changed(recipe, "ppo", second_opinion="judge", save_steps=2)
    run(asked)
    folder = Path(asked.output_dir)
    metrics = json.loads((folder / "ppo" / "metrics.json").read_text())
    assert metrics["kept"] in (2, 4, 6)
    assert "objective/second_opinion" in metrics["last"]
    assert not (folder / "ppo" / best.FOLDER).exists(), "what is finished needs no checkpoint"
    inputs = json.loads((folder / "manifest.json").read_text())["inputs"]["ppo"]
    assert inputs["second_opinion"]["path"] == str(folder / "judge")


def test_opinions_that_cannot_be_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    alone = recipe.model_copy(update={"stages": ("sft", "reward", "ppo")})
    without = changed(changed(alone, "evaluate", judge=False), "ppo", second_opinion="judge")
    with pytest.raises(ConfigError, match="this run has none"):
        run(without)
    itself = changed(alone, "ppo", second_opinion=str(Path(alone.output_dir) / "reward"))
    run(alone.model_copy(update={"stages": ("sft", "reward")}))
    with pytest.raises(ConfigError, match="the reward model itself"):
        run(itself)
