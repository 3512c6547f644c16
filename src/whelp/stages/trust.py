"""What a reward model is worth: on pairs that it has not seen, beside what the surface of the answers gives away."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whelp.engines.base import Engine, Held
from whelp.maths.calibration import expected_calibration_error, reliability, temperature, tempered
from whelp.maths.stats import (
    clustered_bootstrap,
    correlation,
    logistic_fit,
    partial_correlation,
    partial_slope,
    wilson,
)
from whelp.monitors.surface import features
from whelp.stages.comparisons import by_prompt, prompts_of, render, right, strict_pairs
from whelp.text.chat import Chat
from whelp.text.negatives import KINDS, negatives
from whelp.types import Estimate, Ranking, Sequences

NEGATIVES_PROMPTS = 50
"""Held-out prompts on which it is seen whether the best answer scores above bad ones made by a program."""
HUMAN_AGREEMENT = (0.63, 0.77)
"""How often people agree about such pairs: from Bai et al. 2022 (63%) over Ouyang et al. 2022 to Stiennon et al. 2020 (77%)."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out pairs with one side strictly better: who is right about which."""

    cluster: Tensor
    category: list[str]
    source: list[str]
    margin: Float[Tensor, "N"]
    surface_margin: Float[Tensor, "N"]
    length_margin: Float[Tensor, "N"]


def measure(engine: Engine, chat: Chat, rankings: Sequence[Ranking], held_out: Sequence[Ranking]) -> dict[str, Any]:
    """Held-out accuracy with its interval clustered by prompt, beside what the surface alone gives; whether the model is as sure
    as it is right; and whether it pays for length as such."""
    data, too_long = render(chat, held_out)
    scores = scores_of(engine, data)
    pairs = compare(scores, rankings, held_out)
    if len(pairs.margin) == 0:
        return {
            "n": 0,
            "trusted": False,
            "verdict": "There are no held-out pairs, so nothing is known of this reward model.",
        }
    model, surface = right(pairs.margin), right(pairs.surface_margin)
    overall = clustered_bootstrap(model, pairs.cluster)
    advantage = clustered_bootstrap(model - surface, pairs.cluster)
    return {
        "accuracy": overall.mean,
        "accuracy_interval": overall.as_dict(),
        "margin": float(pairs.margin.mean()),
        "loss": float(torch.nn.functional.softplus(-pairs.margin).mean()),
        "n": len(pairs.margin),
        "prompts": overall.n,
        "surface": {"accuracy": clustered_bootstrap(surface, pairs.cluster).as_dict()},
        "length": {"accuracy": clustered_bootstrap(right(pairs.length_margin), pairs.cluster).as_dict()},
        "advantage": advantage.as_dict(),
        "human_agreement": {
            **dict(zip(("low", "high"), HUMAN_AGREEMENT, strict=True)),
            "model": beside_people(overall),
        },
        "by_category": accuracy_by(pairs.category, model, pairs.cluster),
        "by_source": accuracy_by(pairs.source, model, pairs.cluster),
        "calibration": calibration(pairs.margin, pairs.cluster),
        "length_given_quality": length_given_quality(scores, held_out).as_dict(),
        "length_bias": length_bias(scores, held_out),
        "trusted": advantage.low > 0,
        "verdict": verdict(advantage),
        "above_negatives": above_negatives(engine, chat, held_out),
        "held_out_truncated": too_long["truncated"],
    }


def answer_scores(engine: Engine, chat: Chat, rankings: Sequence[Ranking]) -> Float[Tensor, "B"]:
    """Raw scores of all answers, in the order of `render`."""
    return scores_of(engine, render(chat, rankings)[0])


def scores_of(engine: Engine, data: Sequences) -> Float[Tensor, "B"]:
    if not len(data):
        return torch.zeros(0)
    with engine.hold(data) as held:
        return engine.rewards("reward", held).mean(0)


def accuracy(engine: Engine, model: str, held: Held, rankings: Sequence[Ranking]) -> Estimate:
    """Share of the pairs of `rankings`, which are what `held` holds, that the model orders rightly."""
    better, worse, pair_of = strict_pairs(rankings)
    scores = engine.rewards(model, held).mean(0)
    return clustered_bootstrap(right(scores[better] - scores[worse]), by_prompt(rankings, pair_of))


def accuracy_by(names: Sequence[str], is_right: Float[Tensor, "N"], cluster: Tensor) -> dict[str, Any]:
    """Accuracy in the pairs of each name, with its interval."""
    result = {}
    for name in sorted(set(names)):
        here = torch.tensor([other == name for other in names])
        result[name] = {"accuracy": clustered_bootstrap(is_right[here], cluster[here]).as_dict()}
    return result


def calibration(margin: Float[Tensor, "N"], cluster: Tensor) -> dict[str, Any]:
    """How sure the model is against how often it is right, as it is and after temperature scaling."""
    after = tempered(margin, cluster)
    return {
        "error": expected_calibration_error(margin),
        "bins": [asdict(one) for one in reliability(margin)],
        "temperature": temperature(margin),
        "error_after": expected_calibration_error(after),
        "bins_after": [asdict(one) for one in reliability(after)],
    }


def length_given_quality(scores: Float[Tensor, "B"], rankings: Sequence[Ranking]) -> Estimate:
    """Correlation of score and length among answers that were ranked together, at equal rank: above 0, the model pays for length
    as such. The interval draws prompts with all their rankings."""
    words, rank, ranked, prompt = by_answer(rankings)
    return partial_correlation(scores, words, rank, ranked, prompt)


def length_bias(scores: Float[Tensor, "B"], rankings: Sequence[Ranking]) -> dict[str, float]:
    """What the model pays for a word as such: the slope of score over length at equal rank. What taking it off does is measured
    on one half of the prompts with the slope of the other half: correlation of score and length, and accuracy, before and after.
    """
    words, rank, ranked, prompt = by_answer(rankings)
    better, worse, _ = strict_pairs(rankings)

    def slope(rows: Bool[Tensor, "B"]) -> float:
        return partial_slope(scores[rows], words[rows], rank[rows], ranked[rows])

    is_even = prompt % 2 == 0
    debiased = scores - torch.where(is_even, slope(~is_even), slope(is_even)) * words
    return {
        "slope": slope(torch.ones_like(is_even)),
        "correlation": correlation(scores, words),
        "correlation_after": correlation(debiased, words),
        "accuracy": float(right(scores[better] - scores[worse]).mean()),
        "accuracy_after": float(right(debiased[better] - debiased[worse]).mean()),
    }


def by_answer(
    rankings: Sequence[Ranking],
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"], Int[Tensor, "B"], Int[Tensor, "B"]]:
    """(words, rank, number of its ranking, number of its prompt) of every answer."""
    words = torch.tensor([float(len(text.split())) for ranking in rankings for text in ranking.completions])
    rank = torch.tensor([float(rank) for ranking in rankings for rank in ranking.ranks])
    ranked = torch.tensor([g for g, ranking in enumerate(rankings) for _ in ranking.completions])
    return words, rank, ranked, torch.tensor(prompts_of(rankings))[ranked]


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


def compare(scores: Float[Tensor, "B"], rankings: Sequence[Ranking], held_out: Sequence[Ranking]) -> HeldOut:
    """Margins of better over worse on `held_out`: by the model's `scores`, and by baselines fitted on `rankings`."""
    better, worse, pair_of = strict_pairs(held_out)
    texts = [text for ranking in held_out for text in ranking.completions]
    surface, length = surface_scores(rankings, texts), length_scores(rankings, texts)
    return HeldOut(
        by_prompt(held_out, pair_of),
        [held_out[g].prompt.category or "all" for g in pair_of],
        [held_out[g].source for g in pair_of],
        scores[better] - scores[worse],
        surface[better] - surface[worse],
        length[better] - length[worse],
    )


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


def beside_people(accuracy: Estimate) -> str:
    """Where a model stands among people: its interval lies below, within or above their band, or reaches over its edges."""
    low, high = HUMAN_AGREEMENT
    if accuracy.high < low:
        return "below"
    if accuracy.low > high:
        return "above"
    return "within" if low <= accuracy.low and accuracy.high <= high else "overlaps"


def verdict(advantage: Estimate) -> str:
    """One sentence on whether this reward model may be trusted."""
    interval = f"95% interval {advantage.low * 100:+.0f} to {advantage.high * 100:+.0f}"
    points = f"{advantage.mean * 100:+.0f} points, {interval}"
    if advantage.low > 0:
        return f"It beats the surface baseline ({points})."
    if advantage.high < 0:
        return f"UNTRUSTWORTHY: it lies below the surface baseline ({points}); do not train on it."
    return f"UNTRUSTWORTHY: it does not beat the surface baseline by more than noise ({points}); label more."


def guessed(metrics: Mapping[str, Any], twinned: Collection[str] = ()) -> dict[str, float]:
    """The categories of held-out pairs in which the model of these metrics is no better than a coin and clearly worse than on
    the whole, with its accuracy there. A category of few pairs has a wide interval and is none of them.

    In `twinned` categories each prompt has a twin that wants the opposite answer. Being right in one of them can be had by always
    saying the same, so that there nothing but an interval above one half will do.
    """
    accuracies = {name: held_out["accuracy"] for name, held_out in metrics.get("by_category", {}).items()}
    return {
        name: a["mean"]
        for name, a in accuracies.items()
        if a["low"] <= 0.5 and (name in twinned or a["high"] < metrics["accuracy"])
    }
