"""Before the first step policy and reference are one: no KL, ratios of 1, nothing clipped, and the gradient of REINFORCE.

The oracle is the whole model of `transformers` on the same answers, padded on the left, differentiated by autograd.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from whelp.config import PPOConfig
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.maths.shaping import RunningMoments
from whelp.stages import ppo
from whelp.text.chat import Chat, sampled
from whelp.types import Completion, Message, Prompt

PROMPTS = [
    Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["hello", "how are you today", "the end", "two"])
]
LAYERS = 4
CONFIG = PPOConfig(
    total_episodes=64, batch_size=32, num_mini_batches=1, num_ppo_epochs=1, response_length=5, critic_warmup_iterations=0,
    warmup_ratio=0.0, temperature=0.9, kl_coef=0.5, whiten_advantages=False, missing_eos_penalty=None,
)  # fmt: skip


def reward(completions: Sequence[Completion], held: Held) -> Tensor:
    return torch.tensor([(sum(c.tokens) % 7) / 3 - 1 for c in completions])


def build(folder: Path, chat: Chat, compute: Compute, trainable_layers: int | str) -> LocalEngine:
    engine = LocalEngine(chat, compute, temperature=CONFIG.temperature)
    optimizer = OptimizerSpec(max_grad_norm=1e6)
    shared = {"trainable_layers": trainable_layers}
    engine.add("policy", ModelSpec(source=folder, optimizer=optimizer, **shared))
    engine.add("reference", ModelSpec(copy_of="policy", **shared))
    engine.add("value", ModelSpec(copy_of="policy", head="scalar", head_std=0.0, optimizer=optimizer, **shared))
    return engine


def gradients(decoder: nn.Module, layers: Sequence[nn.Module]) -> list[Tensor]:
    return [p.grad.clone() for module in (*layers, decoder.norm) for p in module.parameters()]


def first_iteration(engine: LocalEngine, chat: Chat) -> tuple[list[Completion], dict[str, float], list[Tensor]]:
    """The answers, the metrics, and the policy's gradients at its first update."""
    completions = ppo.sample(engine, PROMPTS, 8, CONFIG, (0, 1))
    found: list[Tensor] = []
    policy = engine.models["policy"]
    weights, decoder = policy.weights, policy.members[0].branch.decoder
    clip = weights.clip

    def note() -> float:
        found.extend(gradients(decoder, decoder.layers))
        return clip()

    weights.clip = note
    with engine.hold(sampled(chat, completions)) as held:
        rollout = ppo.score(engine, completions, held, reward, CONFIG, RunningMoments())
        metrics = ppo.learn(engine, rollout, CONFIG.kl_coef, CONFIG, step=1, iterations=2, seed=0)
    return completions, metrics, found


def logprobs_of_the_whole_model(model: nn.Module, chat: Chat, completions: Sequence[Completion]) -> list[Tensor]:
    """log pi of every answer's tokens, in one batch padded on the left."""
    rows = [(*chat.prompt(c.prompt), *c.tokens) for c in completions]
    width = max(map(len, rows))
    ids = torch.tensor([[chat.tokenizer.pad_token_id] * (width - len(row)) + list(row) for row in rows])
    is_real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (is_real.cumsum(1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=is_real, position_ids=positions, use_cache=False).logits
    table = torch.log_softmax(logits.float() / CONFIG.temperature, dim=-1)
    result = []
    for row, completion in enumerate(completions):
        start = width - len(completion.tokens)
        result.append(table[row, start - 1 : -1].gather(1, ids[row, start:, None]).squeeze(1))
    return result


def others_of(answer: int, completions: Sequence[Completion], scores: Sequence[float]) -> list[float]:
    """Scores of the other answers to the same prompt: REINFORCE's baseline, for the critic knows nothing yet."""
    prompt = completions[answer].prompt
    return [score for i, score in enumerate(scores) if i != answer and completions[i].prompt == prompt]


@pytest.mark.parametrize("trainable_layers", [1, 2, "all"])
def test_the_first_gradient_is_that_of_reinforce(
    tiny_model_folder: Callable[..., Path],
    whole_model: Callable[..., nn.Module],
    chat: Chat,
    compute: Compute,
    record_property: Callable[[str, float], None],
    trainable_layers: int | str,
) -> None:
    folder = tiny_model_folder("llama")
    completions, metrics, found = first_iteration(build(folder, chat, compute, trainable_layers), chat)
    assert metrics["objective/kl"] == 0.0
    assert metrics["val/first_ratio_error"] <= 1e-6
    assert metrics["policy/clipfrac_avg"] == 0.0
    assert metrics["policy/approxkl_avg"] <= 1e-10
    assert len({len(c.tokens) for c in completions}) > 1, "answers of several lengths, so that padding matters"

    model = whole_model(folder)
    logprobs = logprobs_of_the_whole_model(model, chat, completions)
    scores = reward(completions, None).tolist()  # type: ignore[arg-type]
    worth = [score - statistics.mean(others_of(i, completions, scores)) for i, score in enumerate(scores)]
    tokens = sum(len(c.tokens) for c in completions)
    (-sum(score * row.sum() for score, row in zip(worth, logprobs, strict=True)) / tokens).backward()
    first = 0 if trainable_layers == "all" else LAYERS - trainable_layers
    expected = gradients(model.model, model.model.layers[first:])
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-2
    record_property("largest error", max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
