"""What PPO does when its watch gives alarm: a tiny model that learns to say one token loses its entropy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_ppo import PROMPTS, config_of, engine_on, share_of_wanted

from whelp.engines.devices import Compute
from whelp.errors import Interrupted
from whelp.progress import SilentProgress
from whelp.runs.checkpoint import checkpoint_step, checkpoints
from whelp.runs.metrics import MetricsLog
from whelp.stages import guard, ppo
from whelp.stages.context import Stage
from whelp.text.chat import Chat

ITERATIONS = 12


class Told(SilentProgress):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def trained(tiny_model_folder: Callable[..., Path], chat: Chat, compute: Compute, tmp_path: Path):
    """Train with a watch; returns (result, log, warnings, engine)."""

    def run(
        watch: str, where: str = "run", reward: Callable = share_of_wanted, stop_behind: int | None = None, **changes
    ):
        settings = {"total_episodes": 64 * ITERATIONS, "num_generations": 4, "save_steps": 1, "learning_rate": 3e-2, **changes}
        config = config_of(watch=watch, **settings)
        engine = engine_on(tiny_model_folder("llama"), chat, compute)
        told = Told()
        stage = Stage(tmp_path / where, told, 0, config.save_steps)
        if stop_behind is not None:
            heed = stage.heed

            def stopping(step: int, total: int) -> None:
                stage_requested = step == stop_behind
                if stage_requested:
                    raise Interrupted("asked to")
                heed(step, total)

            stage = _with(stage, stopping)
        result = ppo.train(engine, chat, PROMPTS, reward, config, stage)
        return result, MetricsLog.read(stage.folder / "metrics.jsonl"), told.warnings, engine

    return run


def _with(stage: Stage, heed: Callable[[int, int], None]) -> Stage:
    class Stopping(Stage):
        def heed(self, step: int, total: int) -> None:
            heed(step, total)

    return Stopping(stage.folder, stage.progress, stage.seed, stage.save_steps)


@pytest.mark.proof
def test_a_warning_names_the_signal_the_answers_and_the_last_good_checkpoint(trained, tmp_path: Path) -> None:
    result, log, warnings, _ = trained("warn", save_total_limit=20)
    first = result["alarms"][0]
    assert first["signal"] == "entropy"
    assert len(log) == ITERATIONS, "a warning changes nothing"
    assert f"iteration {first['step']}: entropy went from" in warnings[0]
    rows = MetricsLog.read(tmp_path / "run" / guard.FILE)
    worst = [sample["value"] for sample in rows[0]["samples"]]
    assert worst == sorted(worst) and len(worst) == guard.SHOWN, "the answers with the least entropy"
    assert "checkpoint" in warnings[0]


@pytest.mark.proof
def test_warnings_change_no_number(trained) -> None:
    assert trained("off", "off")[1] == trained("warn", "warn")[1]


@pytest.mark.proof
def test_a_policy_that_does_not_change_raises_no_alarm(trained) -> None:
    result, *_ = trained("warn", reward=lambda completions, held: torch.zeros(len(completions)))
    assert result["alarms"] == []


@pytest.mark.proof
def test_the_price_of_a_nat_is_raised(trained) -> None:
    result, log, warnings, _ = trained("raise_kl")
    first = result["alarms"][0]["step"]
    prices = [line["objective/kl_coef"] for line in log]
    assert prices[: first - 1] == [0.01] * (first - 1)
    assert prices[first - 1] == pytest.approx(0.01 * guard.RAISE), "from the alarm on"
    assert f"a nat now costs {0.01 * guard.RAISE:g}" in " ".join(warnings)


def test_it_stops_with_the_policy_of_the_last_good_checkpoint(trained, tmp_path: Path) -> None:
    result, log, warnings, engine = trained("stop")
    last = result["alarms"][-1]["step"]
    assert len(log) == result["iterations"] == last < ITERATIONS
    good = last - guard.BEHIND
    assert f"checkpoint-{good} again" in warnings[-1]
    ended = _weights(engine)
    engine.load_state(tmp_path / "run" / f"checkpoint-{good}")
    assert torch.equal(ended, _weights(engine))
    assert checkpoint_step(checkpoints(tmp_path / "run")[-1]) >= good


def _weights(engine) -> torch.Tensor:
    parameters = [p.detach().float().flatten() for p in engine.models["policy"].decoder.parameters()]
    return torch.cat(parameters).clone()


@pytest.mark.proof
def test_it_goes_back_and_on_at_a_higher_price(trained) -> None:
    result, log, _, _ = trained("rollback")
    first = result["alarms"][0]["step"]
    assert len(log) == ITERATIONS
    entropy = [line["objective/entropy"] for line in log]
    assert entropy[first] > entropy[first - 1], "the policy that answers next is an earlier one"
    assert "updates" not in log[first - 1], "nothing is learned from the answers that raised the alarm"
    assert log[first]["objective/kl_coef"] == pytest.approx(0.01 * guard.RAISE)


@pytest.mark.proof
def test_going_back_resumes_to_the_same_bits(trained, tmp_path: Path) -> None:
    """Stopped behind an iteration that comes after a return to an earlier policy."""
    result, whole, *_ = trained("rollback", "whole", save_steps=2)
    first = result["alarms"][0]["step"]
    for stop in (first, first + 1):
        with pytest.raises(Interrupted):
            trained("rollback", f"stopped-{stop}", stop_behind=stop, save_steps=2)
        _, again, *_ = trained("rollback", f"stopped-{stop}", save_steps=2)
        assert again == whole
        files = [tmp_path / name / guard.FILE for name in ("whole", f"stopped-{stop}")]
        first_rows, second_rows = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        assert first_rows == second_rows
