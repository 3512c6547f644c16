"""Supervised fine-tuning: imitate the demonstrations' assistant turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from whelp.config import SFTConfig
from whelp.engines.base import Engine, Held, Term
from whelp.maths.masked import masked_sum
from whelp.maths.sft import CrossEntropy, SFTTargets
from whelp.stages.context import Stage, numbers, planned, warmup_then_linear
from whelp.text.chat import Chat, sequences, truncated
from whelp.types import Demonstration, Sequences


def train(
    engine: Engine,
    chat: Chat,
    demonstrations: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    config: SFTConfig,
    stage: Stage,
) -> dict[str, Any]:
    """Train the engine's model "policy"; returns the stage's metrics."""
    used, batches = planned(
        len(demonstrations), config.per_step_batch_size, config.num_train_epochs, config.max_steps, stage.seed
    )
    demonstrations = [demonstrations[i] for i in used]
    data, too_long = render(chat, demonstrations)
    start, state = stage.resume(engine)
    test_data, test_too_long = render(chat, held_out)
    with engine.hold(data) as held, engine.hold(test_data) as test, stage.listening():
        before = state.get("test_loss_before") if start else mean_loss(engine, test)
        with stage.progress.steps("SFT", len(batches)) as bar:
            bar.advance(start)
            for step, rows in enumerate(batches[start:], start + 1):
                lr = config.learning_rate * warmup_then_linear(step - 1, len(batches), config.warmup_ratio)
                with stage.step(step, [demonstrations[r].id for r in rows]):
                    metrics = engine.update([term(held.select(rows))], {"policy": lr})
                loss = metrics["policy/loss"]
                stage.log.append(step, loss=loss, lr=lr, grad_norm=metrics["policy/grad_norm"])
                stage.end_step(engine, step, len(batches), test_loss_before=before)
                bar.advance(1, **numbers(metrics, "policy/loss"))
        after = mean_loss(engine, test)
    return {
        "train_loss": stage.log.read(stage.log.path)[-1]["loss"],
        "test_loss_before": before,
        "test_loss": after,
        "sequences": len(data),
        "test_sequences": len(held_out),
        "response_tokens": sum(data.response_lengths),
        **too_long,
        "held_out_truncated": test_too_long["truncated"],
        "steps": len(batches),
    }


def render(chat: Chat, demonstrations: Sequence[Demonstration]) -> tuple[Sequences, dict[str, int]]:
    """Demonstrations as sequences, and how many of them were too long."""
    rendered = [chat.demonstration(demonstration) for demonstration in demonstrations]
    return sequences(rendered), truncated(rendered)


def term(held: Held, coef: float = 1.0) -> Term:
    """The cross-entropy of held demonstrations as a term of the policy (also PPO's ptx term)."""
    lengths = torch.tensor(held.sequences.response_lengths)
    is_response = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    return Term("policy", held, SFTTargets(is_response), CrossEntropy(), coef)


def mean_loss(engine: Engine, held: Held) -> float | None:
    """Cross-entropy a response token, in nats; None without sequences."""
    if len(held.sequences) == 0:
        return None
    scores = engine.logprobs("policy", held)
    return float(-masked_sum(scores.logprobs, scores.is_response) / scores.is_response.sum())
