"""PPO learns, through `stages/ppo.py` and `engines/local.py`, on a tiny random model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from whelp.config import PPOConfig
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.errors import TrainingError
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog
from whelp.stages import ppo
from whelp.stages.context import Stage
from whelp.text.chat import Chat
from whelp.types import Completion, Message, Prompt

WANTED = 17
PROMPTS = [
    Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["hello", "how are you", "the end", "two"])
]


def share_of_wanted(completions: Sequence[Completion], held: Held) -> torch.Tensor:
    """Reward: the share of tokens that are the wanted one, in standard units of a few."""
    return torch.tensor([4.0 * c.tokens.count(WANTED) / len(c.tokens) for c in completions])


def engine_on(
    folder: Path, chat: Chat, compute: Compute, has_critic: bool = True, is_shared: bool = False
) -> LocalEngine:
    engine = LocalEngine(chat, compute)
    optimizer = OptimizerSpec(max_grad_norm=1.0)
    engine.add("policy", ModelSpec(source=folder, trainable_layers=2, optimizer=optimizer))
    engine.add("reference", ModelSpec(copy_of="policy", trainable_layers=2))
    if has_critic:
        engine.add(
            "value",
            ModelSpec(
                copy_of="policy",
                shares_branch=is_shared,
                head="scalar",
                head_std=0.0,
                trainable_layers=2,
                optimizer=optimizer,
            ),
        )
    return engine


def config_of(**changes: object) -> PPOConfig:
    settings = {
        "total_episodes": 64 * 24, "batch_size": 64, "num_generations": 1, "num_mini_batches": 2, "num_ppo_epochs": 3,
        "response_length": 6,
        "learning_rate": 1e-2, "value_learning_rate": 1e-2, "kl_coef": 0.01, "temperature": 1.0,
        "missing_eos_penalty": None, "save_steps": 1000,
    }  # fmt: skip
    return PPOConfig(**(settings | changes))


def train(
    folder: Path, chat: Chat, compute: Compute, where: Path, reward: Callable = share_of_wanted, **changes: object
):
    config = config_of(**changes)
    engine = engine_on(folder, chat, compute, config.advantage == "gae", config.critic == "shared")
    ppo.train(engine, chat, PROMPTS, reward, config, Stage(where, SilentProgress(), 0, config.save_steps))
    return MetricsLog.read(where / "metrics.jsonl")


def test_ppo_learns_to_say_a_token(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    lines = train(tiny_model_folder("llama"), chat, compute, tmp_path)
    assert lines[0]["objective/scores"] < 0.2
    assert lines[-1]["objective/scores"] > 2.0, "the wanted token should fill half of the answers"
    assert lines[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert lines[-1]["objective/kl"] > 1.0
    assert all(line["val/first_ratio_error"] < 1e-5 for line in lines[1:]), "the first minibatch is on policy"
    assert lines[-1]["objective/entropy"] < lines[0]["objective/entropy"]


@pytest.mark.parametrize("advantage", ["rloo", pytest.param("grpo", marks=pytest.mark.proof)])
def test_without_a_critic_it_learns_to_say_a_token_too(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, advantage: str
) -> None:
    lines = train(tiny_model_folder("llama"), chat, compute, tmp_path, advantage=advantage, num_generations=8)
    assert lines[-1]["objective/scores"] > lines[0]["objective/scores"] + 1.5
    assert all("val/explained" not in line and "loss/value_avg" not in line for line in lines)
    assert "loss/policy_avg" in lines[0], "there is no critic to wait for"


@pytest.mark.proof
def test_with_a_shared_critic_it_learns_to_say_a_token_too(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    lines = train(tiny_model_folder("llama"), chat, compute, tmp_path, critic="shared")
    assert lines[-1]["objective/scores"] > lines[0]["objective/scores"] + 1.5
    assert lines[-1]["val/explained"] > 0.1 > lines[0]["val/explained"]


def test_another_temperature_in_sampling_than_in_training_is_seen(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, honest = tiny_model_folder("llama"), ppo.sample
    [line] = train(folder, chat, compute, tmp_path / "same", total_episodes=64)
    assert line["sampler/mismatch"] < 1e-5

    def hotter(engine, prompts, copies, config, key):
        return honest(engine, prompts, copies, config.model_copy(update={"temperature": 1.3}), key)

    monkeypatch.setattr(ppo, "sample", hotter)
    [line] = train(folder, chat, compute, tmp_path / "hotter", total_episodes=64)
    assert line["sampler/mismatch"] > 0.02


@pytest.mark.proof
def test_a_strong_leash_holds(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    lines = train(tiny_model_folder("llama"), chat, compute, tmp_path, kl_coef=10.0, learning_rate=1e-3)
    assert max(line["objective/kl"] for line in lines) < 0.3


@pytest.mark.proof
def test_the_adaptive_leash_follows_the_kl(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    target, horizon = 0.5, 640
    lines = train(
        tiny_model_folder("llama"), chat, compute, tmp_path, kl_coef=0.01, kl_target=target, kl_horizon=horizon
    )
    for line, after in pairwise(lines):
        change = after["objective/kl_coef"] / line["objective/kl_coef"] - 1
        error = line["objective/kl"] / target - 1
        assert change == pytest.approx(max(-0.2, min(0.2, error)) * 64 / horizon, abs=1e-6)
    assert lines[1]["objective/kl_coef"] < 0.01 < lines[-1]["objective/kl_coef"]


def test_the_critic_learns_before_the_policy_moves(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    lines = train(
        tiny_model_folder("llama"), chat, compute, tmp_path, critic_warmup_iterations=4, total_episodes=64 * 5
    )
    assert all("loss/policy_avg" not in line for line in lines[:4])
    assert "loss/policy_avg" in lines[4]
    assert all(line["objective/kl"] == pytest.approx(0.0, abs=1e-5) for line in lines)


def test_target_kl_ends_the_epochs(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    lines = train(tiny_model_folder("llama"), chat, compute, tmp_path, target_kl=1e-7, total_episodes=64 * 3)
    assert lines[0]["updates"] == 6, "nothing but the critic learns in the first iteration"
    assert all(line["updates"] == 2 for line in lines[1:])


def test_a_nan_stops_with_step_batch_and_checkpoint_named(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    def broken(completions: Sequence[Completion], held: Held) -> torch.Tensor:
        return torch.full((len(completions),), math.nan)

    with pytest.raises(TrainingError, match=r"step 1: not finite: .*p0.*There is no checkpoint yet"):
        train(tiny_model_folder("llama"), chat, compute, tmp_path, reward=broken)


def test_a_late_nan_names_the_checkpoint_before_it(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    calls: list[int] = []

    def breaks_later(completions: Sequence[Completion], held: Held) -> torch.Tensor:
        calls.append(len(completions))
        return torch.full((len(completions),), math.nan if len(calls) > 7 else 0.0)

    with pytest.raises(TrainingError, match=r"step 8: not finite: .*last good checkpoint is \S+checkpoint-5\."):
        train(tiny_model_folder("llama"), chat, compute, tmp_path, reward=breaks_later, save_steps=5)


def test_batch_of_prompts_deals_every_prompt_out() -> None:
    prompts = [Prompt(str(i), (Message("user", "x"),)) for i in range(10)]
    first = [p.id for step in (1, 2) for p in ppo.batch_of_prompts(prompts, 5, step, seed=3)[0]]
    assert sorted(first, key=int) == [str(i) for i in range(10)]
    few, copies = ppo.batch_of_prompts(prompts[:2], 6, 1, 0)
    assert {p.id for p in few} == {"0", "1"}
    assert copies == 3


@pytest.mark.parametrize(("prompts", "batch_size", "chosen"), [(4, 6, 3), (50, 64, 32), (5, 7, 1), (1, 4, 1)])
def test_few_prompts_fill_a_batch_with_several_answers_each(prompts: int, batch_size: int, chosen: int) -> None:
    asked = [Prompt(str(i), (Message("user", "x"),)) for i in range(prompts)]
    steps = [ppo.batch_of_prompts(asked, batch_size, step, seed=1) for step in range(1, 40)]
    assert all(len({p.id for p in batch}) == chosen and len(batch) * copies == batch_size for batch, copies in steps)
    assert {p.id for batch, _ in steps for p in batch} == {p.id for p in asked}, "all get their turn"
