"""What is said of a reward model whose defects are planted."""

from __future__ import annotations

import random

import pytest
import torch

from whelp.stages.trust import calibration, compare, length_given_quality
from whelp.types import Message, Prompt, Ranking


def rankings(count: int, source: str = "human") -> list[Ranking]:
    """Four answers to each prompt, of 1 to 40 words; what they are worth has nothing to do with their length."""
    draw = random.Random(3)
    made = []
    for i in range(count):
        texts = tuple(" ".join(["word"] * draw.randint(1, 40)) for _ in range(4))
        ranks = draw.choice([(1, 2, 3, 4), (2, 1, 1, 3), (1, 1, 2, 2), (3, 2, 2, 1)])
        made.append(Ranking(Prompt(f"p{i}", (Message("user", f"question {i}"),), "explain"), texts, ranks, source))
    return made


def scores_of(data: list[Ranking], pays_for_length: float) -> torch.Tensor:
    draw = random.Random(4)
    return torch.tensor(
        [
            -rank + pays_for_length * len(text.split()) + draw.gauss(0, 1)
            for ranking in data
            for text, rank in zip(ranking.completions, ranking.ranks, strict=True)
        ]
    )


@pytest.mark.parametrize(("pays_for_length", "sign"), [(0.1, 1), (-0.1, -1)])
def test_a_model_that_pays_for_length_is_seen(pays_for_length, sign):
    data = rankings(120)
    found = length_given_quality(scores_of(data, pays_for_length), data)
    assert sign * found.mean > 0.5
    assert sign * min(found.low, found.high, key=lambda end: sign * end) > 0.4


def test_a_model_that_pays_for_quality_alone_is_not_accused():
    data = rankings(120)
    found = length_given_quality(scores_of(data, 0.0), data)
    assert found.low < 0 < found.high
    assert found.n == 120


def test_a_model_that_is_too_sure_is_seen_and_mended():
    data = rankings(300)
    pairs = compare(5 * scores_of(data, 0.0), data, data)
    found = calibration(pairs.margin, pairs.cluster)
    assert found["error"] > 0.1 > 0.05 > found["error_after"]
    assert found["temperature"] > 2
    assert sum(b["n"] for b in found["bins"]) == sum(b["n"] for b in found["bins_after"]) == len(pairs.margin)


def test_pairs_know_their_source():
    data = [*rankings(3), *rankings(2, source="ai")]
    pairs = compare(scores_of(data, 0.0), data, data)
    assert set(pairs.source) == {"human", "ai"}
    assert len(pairs.source) == len(pairs.margin) == len(pairs.category)
