"""Who beats whom in a ranking, and how surely."""

from __future__ import annotations

import math

import pytest

from whelp.stages.comparisons import by_prompt, prompts_of, strict_pairs, targets
from whelp.types import Message, Prompt, Ranking


def ranking(*ranks: int, **told: float) -> Ranking:
    texts = tuple(f"answer {i}" for i in range(len(ranks)))
    return Ranking(Prompt("p", (Message("user", "go"),)), texts, ranks, **told)


def test_a_better_rank_wins_and_equal_ranks_tie():
    found = targets([ranking(1, 2, 2), ranking(2, 1)])
    assert found.group.tolist() == [0, 0, 0, 1, 1]
    assert found.slot.tolist() == [0, 1, 2, 0, 1]
    nan = math.nan
    expected = [[nan, 1.0, 1.0], [0.0, nan, 0.5], [0.0, 0.5, nan], [nan, 0.0, nan], [1.0, nan, nan]]
    for row, wanted in zip(found.probability.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, nan_ok=True)


def test_margin_and_weight_are_those_of_the_ranking():
    found = targets([ranking(1, 2, margin=0.5), ranking(1, 2, 3, weight=0.25)])
    assert found.margin.tolist() == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert found.weight.tolist() == [1.0, 1.0, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("probability", "smoothing", "expected"), [(1.0, 0.1, 0.9), (0.8, 0.0, 0.8), (0.8, 0.25, 0.65), (0.5, 0.3, 0.5)]
)
def test_smoothing_is_how_often_a_label_is_the_wrong_way_round(probability, smoothing, expected):
    """Right and kept, or wrong and turned: p (1 - s) + (1 - p) s."""
    found = targets([ranking(1, 2, probability=probability)], smoothing)
    assert found.probability[0, 1].item() == pytest.approx(expected)
    assert found.probability[1, 0].item() == pytest.approx(1 - expected)


def test_pairs_that_are_no_tie():
    better, worse, prompt = strict_pairs([ranking(2, 1, 2), ranking(1, 1)])
    assert list(zip(better, worse, prompt, strict=True)) == [(1, 0, 0), (1, 2, 0)]
    assert strict_pairs([ranking(1, 2, probability=0.5), ranking(1, 2, probability=0.6)]) == ([2], [3], [1])


def test_rankings_of_one_prompt_are_of_one_cluster():
    rankings = [Ranking(Prompt(id, (Message("user", "tea?"),)), ("a", "b"), (1, 2)) for id in ("x", "y", "x")]
    assert prompts_of(rankings) == [0, 1, 0]
    assert by_prompt(rankings, [2, 0, 1, 1]).tolist() == [0, 0, 1, 1]
