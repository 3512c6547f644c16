"""The reward model: which of two answers would people prefer, learned from rankings (Bradley-Terry)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.config import RewardConfig
from whelp.engines.base import Engine, SamplingParams, Term
from whelp.errors import DataError
from whelp.maths.preference import BradleyTerry, PreferenceTargets
from whelp.maths.stats import Estimate, clustered_bootstrap, logistic_fit, wilson
from whelp.monitors.surface import features
from whelp.stages.context import Stage, numbers, planned, warmup_then_linear
from whelp.text.chat import Chat, Rendered, sequences
from whelp.text.negatives import KINDS, SOURCE, negatives
from whelp.types import Demonstration, Prompt, Ranking, Sequences

SCALE_PROMPTS = 64
NEGATIVES_PROMPTS = 50
"""Held-out prompts on which it is seen whether the best answer scores above bad ones made by a program."""


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
    start, _ = stage.resume(engine)
    with engine.hold(data) as held, stage.listening(), stage.progress.steps("reward model", len(batches)) as bar:
        bar.advance(start)
        for step, chosen in enumerate(batches[start:], start + 1):
            lr = config.learning_rate * warmup_then_linear(step - 1, len(batches), config.warmup_ratio)
            batch = [learned[i] for i in chosen]
            rows = [row for i in chosen for row in rows_of[i]]
            with stage.step(step, [ranking.prompt.id for ranking in batch]):
                metrics = engine.update(
                    [Term("reward", held.select(rows), targets(batch), BradleyTerry())], {"reward": lr}
                )
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


def render(chat: Chat, rankings: Sequence[Ranking]) -> tuple[Sequences, int]:
    """All completions of all rankings in order, those of one prompt in one group; and how many lost their start."""
    rendered = [chat.answer(r.prompt, text) for r in rankings for text in r.completions]
    group = [g for g, r in enumerate(rankings) for _ in r.completions]
    return sequences(rendered, group), sum(r.is_truncated for r in rendered)


def rows_by_ranking(rankings: Sequence[Ranking]) -> list[list[int]]:
    """Which rows of the rendered sequences each ranking has."""
    rows, first = [], 0
    for ranking in rankings:
        rows.append(list(range(first, first + len(ranking.completions))))
        first += len(ranking.completions)
    return rows


def targets(rankings: Sequence[Ranking]) -> PreferenceTargets:
    """All comparisons within each ranking: 1 for the better rank, 0.5 for a tie."""
    width = max(len(ranking.completions) for ranking in rankings)
    group, slot, probability = [], [], []
    for g, ranking in enumerate(rankings):
        for i, rank in enumerate(ranking.ranks):
            group.append(g)
            slot.append(i)
            beats = [0.5 if rank == other else float(rank < other) for other in ranking.ranks]
            beats[i] = math.nan
            probability.append(beats + [math.nan] * (width - len(beats)))
    return PreferenceTargets(torch.tensor(group), torch.tensor(slot), torch.tensor(probability))


# -- what the model is worth ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out pairs with one side strictly better: who is right about which."""

    cluster: Tensor
    category: list[str]
    margin: Float[Tensor, "N"]
    surface_margin: Float[Tensor, "N"]
    length_margin: Float[Tensor, "N"]


def measure(engine: Engine, chat: Chat, rankings: Sequence[Ranking], held_out: Sequence[Ranking]) -> dict[str, Any]:
    """Held-out accuracy with its interval clustered by prompt, beside what the surface alone gives."""
    pairs = compare(engine, chat, rankings, held_out)
    if len(pairs.margin) == 0:
        return {
            "n": 0,
            "trusted": False,
            "verdict": "There are no held-out pairs, so nothing is known of this reward model.",
        }
    model, surface = right(pairs.margin), right(pairs.surface_margin)
    accuracy = clustered_bootstrap(model, pairs.cluster)
    advantage = clustered_bootstrap(model - surface, pairs.cluster)
    categories = sorted(set(pairs.category))
    by_category = {}
    for category in categories:
        here = torch.tensor([c == category for c in pairs.category])
        by_category[category] = {"accuracy": clustered_bootstrap(model[here], pairs.cluster[here]).as_dict()}
    return {
        "accuracy": accuracy.mean,
        "accuracy_interval": accuracy.as_dict(),
        "margin": float(pairs.margin.mean()),
        "loss": float(torch.nn.functional.softplus(-pairs.margin).mean()),
        "n": len(pairs.margin),
        "prompts": accuracy.n,
        "surface": {"accuracy": clustered_bootstrap(surface, pairs.cluster).as_dict()},
        "length": {"accuracy": clustered_bootstrap(right(pairs.length_margin), pairs.cluster).as_dict()},
        "advantage": advantage.as_dict(),
        "by_category": by_category,
        "trusted": advantage.low > 0,
        "verdict": verdict(advantage),
        "above_negatives": above_negatives(engine, chat, held_out),
    }


def above_negatives(engine: Engine, chat: Chat, held_out: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    """How often the best answer scores above one that breaks off, repeats itself or talks of something else, by kind."""
    some = held_out[:NEGATIVES_PROMPTS]
    made = negatives(some)
    if not made:
        return {}
    with engine.hold(render(chat, made)[0]) as held:
        scores = engine.rewards("reward", held).mean(0).tolist()
    score = dict(zip([(r.prompt.id, text) for r in made for text in r.completions], scores, strict=True))
    result = {}
    for kind in KINDS:
        pairs = [(r.prompt.id, *r.completions) for r in negatives(some, kinds=[kind])]
        wins = sum(score[id, best] > score[id, bad] for id, best, bad in pairs)
        result[kind] = wilson(wins, len(pairs)).as_dict()
    return {kind: rate for kind, rate in result.items() if rate["n"]}


def compare(engine: Engine, chat: Chat, rankings: Sequence[Ranking], held_out: Sequence[Ranking]) -> HeldOut:
    """Margins of better over worse on `held_out`: by the model, and by baselines fitted on `rankings`."""
    better, worse, cluster = strict_pairs(held_out)
    texts = [text for ranking in held_out for text in ranking.completions]
    surface = surface_scores(rankings, texts)
    length = length_scores(rankings, texts)
    scores = torch.zeros(0)
    if texts:
        with engine.hold(render(chat, held_out)[0]) as held:
            scores = engine.rewards("reward", held).mean(0)
    return HeldOut(
        torch.tensor(cluster),
        [held_out[g].prompt.category or "all" for g in cluster],
        scores[better] - scores[worse],
        surface[better] - surface[worse],
        length[better] - length[worse],
    )


def strict_pairs(rankings: Sequence[Ranking]) -> tuple[list[int], list[int], list[int]]:
    """Rows of the better and the worse answer of every pair that is no tie, and the ranking that it is from."""
    pairs = [
        (rows[i], rows[j], g)
        for g, (ranking, rows) in enumerate(zip(rankings, rows_by_ranking(rankings), strict=True))
        for i, rank in enumerate(ranking.ranks)
        for j, other in enumerate(ranking.ranks)
        if rank < other
    ]
    return [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]


def right(margin: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """1 where the better answer scores higher, 0.5 where they are equal."""
    return torch.where(margin == 0, 0.5, (margin > 0).float())


def surface_scores(rankings: Sequence[Ranking], texts: Sequence[str]) -> Float[Tensor, "N"]:
    """A logistic regression on surface features of the training pairs, applied to `texts`."""
    sides = [pair for ranking in rankings for pair in ranking.pairs()]
    chosen = torch.tensor([features(pair.chosen) for pair in sides])
    rejected = torch.tensor([features(pair.rejected) for pair in sides])
    scale = torch.cat([chosen, rejected]).std(0).clamp_min(1e-6)
    weights = logistic_fit((chosen - rejected) / scale, torch.tensor([pair.probability for pair in sides]), ridge=1e-2)
    return torch.tensor([features(text) for text in texts]).reshape(-1, len(weights)) / scale @ weights


def length_scores(rankings: Sequence[Ranking], texts: Sequence[str]) -> Float[Tensor, "N"]:
    """Length in words, with the sign that does better on the training pairs."""
    pairs = [pair for ranking in rankings for pair in ranking.pairs() if pair.probability != 0.5]
    longer = sum(len(pair.chosen.split()) > len(pair.rejected.split()) for pair in pairs)
    shorter = sum(len(pair.chosen.split()) < len(pair.rejected.split()) for pair in pairs)
    sign = 1.0 if longer >= shorter else -1.0
    return sign * torch.tensor([float(len(text.split())) for text in texts])


def verdict(advantage: Estimate) -> str:
    """One sentence on whether this reward model may be trusted."""
    interval = f"95% interval {advantage.low * 100:+.0f} to {advantage.high * 100:+.0f}"
    points = f"{advantage.mean * 100:+.0f} points, {interval}"
    if advantage.low > 0:
        return f"It beats the surface baseline ({points})."
    if advantage.high < 0:
        return f"UNTRUSTWORTHY: it lies below the surface baseline ({points}); do not train on it."
    return f"UNTRUSTWORTHY: it does not beat the surface baseline by more than noise ({points}); label more."


def guessed(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The categories of held-out pairs in which the model of these metrics is no better than a coin and clearly worse than on
    the whole, with its accuracy there. A category of few pairs has a wide interval and is none of them."""
    accuracies = {name: held_out["accuracy"] for name, held_out in metrics.get("by_category", {}).items()}
    return {name: a["mean"] for name, a in accuracies.items() if a["low"] <= 0.5 and a["high"] < metrics["accuracy"]}


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
