"""Direct preference optimisation: learn from the rankings without a reward model and without sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from whelp.config import DPOConfig
from whelp.engines.base import Engine, Held, Term
from whelp.maths.masked import masked_row_sums
from whelp.maths.preference import DPOLoss, DPOTargets
from whelp.maths.stats import clustered_bootstrap
from whelp.stages.comparisons import by_prompt, render, right, rows_by_ranking, strict_pairs, targets
from whelp.stages.context import Stage, numbers, planned, warmup_then_linear
from whelp.text.chat import Chat
from whelp.types import Ranking


def train(
    engine: Engine,
    chat: Chat,
    rankings: Sequence[Ranking],
    held_out: Sequence[Ranking],
    config: DPOConfig,
    stage: Stage,
) -> dict[str, Any]:
    """Train the engine's model "policy" beside its fixed "reference"; returns the stage's metrics, measured on `held_out`."""
    used, batches = planned(
        len(rankings), config.per_step_batch_size, config.num_train_epochs, config.max_steps, stage.seed
    )
    rankings = [rankings[i] for i in used]
    data, too_long = render(chat, rankings)
    rows_of = rows_by_ranking(rankings)
    loss = DPOLoss(config.beta)
    start, _ = stage.resume(engine)
    with engine.hold(data) as held, stage.listening(), stage.progress.steps("DPO", len(batches)) as bar:
        ref = answer_logprobs(engine, "reference", held)
        bar.advance(start)
        for step, chosen in enumerate(batches[start:], start + 1):
            lr = config.learning_rate * warmup_then_linear(step - 1, len(batches), config.warmup_ratio)
            batch = [rankings[i] for i in chosen]
            rows = [row for i in chosen for row in rows_of[i]]
            compared = targets(batch)
            leashed = DPOTargets(
                compared.group, compared.slot, compared.probability, compared.margin, compared.weight, ref[rows]
            )
            with stage.step(step, [ranking.prompt.id for ranking in batch]):
                metrics = engine.update([Term("policy", held.select(rows), leashed, loss)], {"policy": lr})
            stage.log.append(step, lr=lr, **{key.removeprefix("policy/"): value for key, value in metrics.items()})
            stage.end_step(engine, step, len(batches))
            bar.advance(1, **numbers(metrics, "policy/loss", "policy/accuracy"))
    return {
        **measure(engine, chat, held_out, config.beta),
        "train_prompts": len(rankings),
        **too_long,
        "steps": len(batches),
    }


def answer_logprobs(engine: Engine, model: str, held: Held) -> Float[Tensor, "B"]:
    """log pi(y | x) of whole answers."""
    scores = engine.logprobs(model, held)
    return masked_row_sums(scores.logprobs, scores.is_response)


def measure(engine: Engine, chat: Chat, held_out: Sequence[Ranking], beta: float) -> dict[str, Any]:
    """How often the implied reward puts the better of two held-out answers first, clustered by prompt."""
    better, worse, pair_of = strict_pairs(held_out)
    if not better:
        return {"n": 0}
    data, too_long = render(chat, held_out)
    with engine.hold(data) as held:
        implied = beta * (answer_logprobs(engine, "policy", held) - answer_logprobs(engine, "reference", held))
    margin = implied[better] - implied[worse]
    accuracy = clustered_bootstrap(right(margin), by_prompt(held_out, pair_of))
    return {
        "accuracy": accuracy.mean,
        "accuracy_interval": accuracy.as_dict(),
        "margin": float(margin.mean()),
        "n": len(better),
        "held_out_truncated": too_long["truncated"],
    }
