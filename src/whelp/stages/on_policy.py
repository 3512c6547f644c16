"""Is the reward right where it counts: about the policy's own answers, of which no ranking says anything?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.checkers import passes
from whelp.maths.stats import clustered_bootstrap, clusters_of
from whelp.progress import rate
from whelp.types import Completion, Estimate

FILE = "on_policy.jsonl"


def order(completions: Sequence[Completion], scores: Float[Tensor, "B"]) -> Iterator[dict[str, Any]]:
    """For each prompt, how many pairs of its answers have one that passes its check and one that does not, and how many of
    these the scores put in that order (half where they are equal). Prompts without such a pair are passed over."""
    answers: dict[str, list[tuple[bool, float]]] = {}
    for c, score in zip(completions, scores.tolist(), strict=True):
        if c.prompt.check is not None:
            answers.setdefault(c.prompt.id, []).append((passes(c.prompt.check, c.text, c.is_finished), score))
    for prompt, found in answers.items():
        ahead = [good - bad for (a, good), (b, bad) in map(sorted_by_check, combinations(found, 2)) if a != b]
        if ahead:
            right = sum(0.5 if gap == 0 else float(gap > 0) for gap in ahead)
            yield {"prompt": prompt, "right": right, "pairs": len(ahead)}


def sorted_by_check(pair: tuple[tuple[bool, float], ...]) -> list[tuple[bool, float]]:
    """The one that passes first."""
    return sorted(pair, key=lambda answer: not answer[0])


def accuracy(rows: Sequence[Mapping[str, Any]]) -> tuple[int, Estimate]:
    """(pairs, share of them that are ordered rightly) of such rows, with an interval that draws whole prompts."""
    right = torch.tensor([row["right"] / row["pairs"] for row in rows for _ in range(row["pairs"])])
    prompts = [row["prompt"] for row in rows for _ in range(row["pairs"])]
    return len(right), clustered_bootstrap(right, clusters_of(prompts))


def by_checkpoint(rows: Sequence[Mapping[str, Any]], save_steps: int, iterations: int) -> list[dict[str, Any]]:
    """Accuracy in every `save_steps` iterations that have a pair."""
    result = []
    for window in sorted({(row["step"] - 1) // save_steps for row in rows}):
        pairs, rate = accuracy([row for row in rows if (row["step"] - 1) // save_steps == window])
        last = min((window + 1) * save_steps, iterations)
        result.append({"step": last, "pairs": pairs, "accuracy": rate.as_dict()})
    return result


def told(found: Sequence[Mapping[str, Any]]) -> str:
    """One sentence, "" where there is nothing to tell."""
    if not found:
        return ""
    rates = ", ".join(f"{rate(one['accuracy'])} of {one['pairs']} up to iteration {one['step']}" for one in found)
    return f"Of pairs of the policy's own answers that the checks tell apart the reward orders rightly {rates}."
