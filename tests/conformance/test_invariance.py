"""PPO's numbers do not depend on what should not matter: how a batch is cut and ordered, and where the model is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from whelp.config import PPOConfig
from whelp.engines import local
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.engines.master import MasterWeights
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog
from whelp.stages import ppo
from whelp.stages.context import Stage
from whelp.text.chat import Chat
from whelp.types import Completion, Message, Prompt

PROMPTS = [
    Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["hello", "how are you today", "the end", "two"])
]
STEADY = OptimizerSpec(eps=1e-3)
"""With a small eps Adam blows rounding errors of the smallest gradients up to whole steps."""
LAYERS, TRAINED = 4, 2
BF16_RATIO = 0.01
"""Bound on the mean distance of the first minibatch's ratios from 1 in bf16."""


def reward(completions: Sequence[Completion], held: Held) -> Tensor:
    return torch.tensor([(sum(c.tokens) % 7) / 3 - 1 for c in completions])


def train(
    folder: Path, chat: Chat, compute: Compute, where: Path, depth: int = LAYERS - TRAINED, **changes: object
) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Three iterations; the logged lines, and the policy's two upper layers. The models are cut below layer `depth`."""
    engine = LocalEngine(chat, compute)
    shared = {"trainable_layers": LAYERS - depth, "optimizer": STEADY}
    engine.add("policy", ModelSpec(source=folder, **shared))
    engine.add("reference", ModelSpec(copy_of="policy", trainable_layers=LAYERS - depth))
    engine.add("value", ModelSpec(copy_of="policy", head="scalar", head_std=0.0, **shared))
    upper = [engine.models[name].members[0].branch.decoder.layers[-TRAINED:] for name in ("policy", "value")]
    for name, layers in zip(("policy", "value"), upper, strict=True):
        model = engine.models[name]
        for parameter in model.members[0].branch.parameters():
            parameter.requires_grad_(False)
        head = [model.members[0].head] if name == "value" else []
        model.weights = MasterWeights([layers, model.members[0].branch.decoder.norm, *head], STEADY)
    settings = {
        "total_episodes": 32 * 3, "batch_size": 32, "num_mini_batches": 1, "num_ppo_epochs": 2, "response_length": 5,
        "learning_rate": 1e-2, "value_learning_rate": 1e-2, "warmup_ratio": 0.0, "temperature": 1.0, "kl_coef": 0.1,
    }  # fmt: skip
    config = PPOConfig.model_validate(settings | changes)
    ppo.train(engine, chat, PROMPTS, reward, config, Stage(where, SilentProgress(), 0, save_steps=1000))
    return MetricsLog.read(where / "metrics.jsonl"), [p.detach().clone() for p in upper[0].parameters()]


def assert_alike(one: tuple[list, list], other: tuple[list, list]) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    for mine, theirs in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def usual(
    tiny_model_folder: Callable[..., Path],
    chat: Chat,
    compute: Compute,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list, list]:
    lines, weights = train(tiny_model_folder("llama"), chat, compute, tmp_path_factory.mktemp("usual"))
    assert lines[-1]["objective/kl"] > 0.01, "it moved"
    return lines, weights


@pytest.mark.parametrize("budget", [24, 100])
def test_the_cut_into_pieces_does_not_matter(
    usual, tiny_model_folder, chat, compute, tmp_path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(local, "PROCESSOR", replace(local.PROCESSOR, piece=budget, training_piece=budget))
    assert_alike(train(tiny_model_folder("llama"), chat, compute, tmp_path), usual)


def test_the_order_in_the_batch_does_not_matter(
    usual, tiny_model_folder, chat, compute, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ppo.sample
    monkeypatch.setattr(ppo, "sample", lambda *arguments: honest(*arguments)[::-1])
    assert_alike(train(tiny_model_folder("llama"), chat, compute, tmp_path), usual)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_depth_of_the_trunk_does_not_matter(usual, tiny_model_folder, chat, compute, tmp_path, depth: int) -> None:
    """The same two layers learn, whether the frozen ones below them stand in the trunk or in the branches."""
    assert_alike(train(tiny_model_folder("llama"), chat, compute, tmp_path, depth), usual)


def test_what_learns_does_matter(usual, tiny_model_folder, chat, compute, tmp_path) -> None:
    """The comparison sees a difference where there is one."""
    other = train(tiny_model_folder("llama"), chat, compute, tmp_path, learning_rate=0.011)
    with pytest.raises(AssertionError):
        assert_alike(other, usual)


def test_the_first_ratio_is_one(usual) -> None:
    assert max(line["val/first_ratio_error"] for line in usual[0][1:]) < 1e-5


def test_the_first_ratio_is_near_one_in_bf16(tiny_model_folder, chat, compute_bf16, tmp_path, monkeypatch) -> None:
    """Old and new log-probabilities come from pieces of other shapes, and bf16 rounds them otherwise."""
    monkeypatch.setattr(local, "PROCESSOR", replace(local.PROCESSOR, training_piece=100))
    lines, _ = train(tiny_model_folder("llama"), chat, compute_bf16, tmp_path, num_mini_batches=4)
    assert max(line["val/first_ratio_error"] for line in lines[1:]) < BF16_RATIO
