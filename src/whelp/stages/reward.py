"""The reward model: which of two answers would people prefer, learned from rankings (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.config import RewardConfig
from whelp.engines.base import Engine, SamplingParams, Term
from whelp.errors import DataError
from whelp.maths.preference import BradleyTerry
from whelp.stages.comparisons import render, rows_by_ranking, targets
from whelp.stages.context import Stage, numbers, planned, warmup_then_linear
from whelp.stages.trust import measure
from whelp.text.chat import Chat, Rendered, sequences
from whelp.text.negatives import SOURCE, negatives
from whelp.types import Demonstration, Prompt, Ranking

SCALE_PROMPTS = 64


def train(
    engine: Engine,
    chat: Chat,
    rankings: Sequence[Ranking],
    held_out: Sequence[Ranking],
    config: RewardConfig,
    stage: Stage,
) -> dict[str, Any]:
    """Train the engine's model "reward"; returns the stage's metrics, measured on `held_out` beside baselines that learned
    from the same rankings."""
    learned = [*rankings, *negatives(rankings, config.negatives)]
    used, batches = planned(
        len(learned), config.per_step_batch_size, config.num_train_epochs, config.max_steps, stage.seed
    )
    learned = [learned[i] for i in used]
    rankings = [ranking for ranking in learned if ranking.source != SOURCE]
    data, truncated = render(chat, learned)
    rows_of = rows_by_ranking(learned)
    loss = BradleyTerry(config.center_rewards_coefficient)
    start, _ = stage.resume(engine)
    with engine.hold(data) as held, stage.listening(), stage.progress.steps("reward model", len(batches)) as bar:
        bar.advance(start)
        for step, chosen in enumerate(batches[start:], start + 1):
            lr = config.learning_rate * warmup_then_linear(step - 1, len(batches), config.warmup_ratio)
            batch = [learned[i] for i in chosen]
            rows = [row for i in chosen for row in rows_of[i]]
            with stage.step(step, [ranking.prompt.id for ranking in batch]):
                term = Term("reward", held.select(rows), targets(batch, config.label_smoothing), loss)
                metrics = engine.update([term], {"reward": lr})
            stage.log.append(step, lr=lr, **{key.removeprefix("reward/"): value for key, value in metrics.items()})
            stage.end_step(engine, step, len(batches))
            bar.advance(1, **numbers(metrics, "reward/loss", "reward/accuracy"))
    return {
        **measure(engine, chat, rankings, held_out),
        "train_prompts": len(rankings),
        "train_pairs": sum(len(ranking.pairs()) for ranking in rankings),
        "train_negatives": sum(len(ranking.completions) - 1 for ranking in learned if ranking.source == SOURCE),
        "truncated": truncated,
        "steps": len(batches),
    }


# -- where zero is, and how large one is ------------------------------------------------------------------------------


def scale(
    engine: Engine,
    chat: Chat,
    rankings: Sequence[Ranking],
    demonstrations: Sequence[Demonstration],
    sampling: SamplingParams | None = None,
) -> tuple[float, float]:
    """(gain, shift): the demonstrations' mean lies at 0 and the policy's own samples have unit variance.

    `sampling` is how PPO will sample the engine's model "policy"; None where there is none. Measured on `SCALE_PROMPTS` of
    each; prompts that fill the context alone are passed over. Without demonstrations or a policy the rankings' completions
    stand in for what is missing.
    """
    written = chat_scores(engine, [chat.demonstration(d) for d in demonstrations[:SCALE_PROMPTS]])
    sampled = torch.empty(0)
    if sampling is not None:
        prompts = [ranking.prompt for ranking in rankings[:SCALE_PROMPTS] if leaves_room(chat, ranking.prompt)]
        completions = list(engine.sample("policy", prompts, sampling))
        sampled = chat_scores(engine, [chat.completion(chat.prompt(c.prompt), c.tokens) for c in completions])
    if not len(written) or len(sampled) < 2:
        some = rankings[:SCALE_PROMPTS]
        ranked = chat_scores(engine, [chat.answer(r.prompt, text) for r in some for text in r.completions])
        written = written if len(written) else ranked
        sampled = sampled if len(sampled) > 1 else ranked
    gain = float(1.0 / sampled.std().clamp_min(1e-4))
    return gain, gain * float(written.mean())


def leaves_room(chat: Chat, prompt: Prompt) -> bool:
    try:
        return chat.max_length is None or len(chat.prompt(prompt)) < chat.max_length
    except DataError:
        return False


def chat_scores(engine: Engine, rendered: Sequence[Rendered]) -> Float[Tensor, "N"]:
    """Raw scores of rendered conversations."""
    if not rendered:
        return torch.empty(0)
    with engine.hold(sequences(rendered)) as held:
        return engine.rewards("reward", held).mean(0)
