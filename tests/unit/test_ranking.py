"""Strengths of models against another library and a general optimiser; what no data can bound is said to be unbounded."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pytest
import scipy.optimize
import torch

from whelp.maths.ranking import ELO, bradley_terry, elo
from whelp.types import Estimate

TRUTH = np.array([0.8, 0.3, -0.2, -0.9])


def comparisons(n: int, seed: int, truth: np.ndarray = TRUTH, ties: float = 0.2) -> tuple[torch.Tensor, ...]:
    """n comparisons of two models each: first, second, wins."""
    draw = np.random.default_rng(seed)
    pairs = np.array([draw.choice(len(truth), 2, replace=False) for _ in range(n)])
    wins = (draw.random(n) < 1 / (1 + np.exp(truth[pairs[:, 1]] - truth[pairs[:, 0]]))).astype(float)
    wins[draw.random(n) < ties] = 0.5
    return torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1]), torch.from_numpy(wins)


def means(found: list[Estimate]) -> list[float]:
    return [one.mean for one in found]


def test_strengths_are_those_of_another_library() -> None:
    first, second, wins = comparisons(300, 0)
    found = bradley_terry(first, second, wins, torch.arange(300), prior=1e-6, draws=2)
    named = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    other = evalica.bradley_terry(
        first.tolist(), second.tolist(), [named[w] for w in wins.tolist()], tolerance=1e-12, limit=10_000
    )
    expected = np.log(other.scores.sort_index().to_numpy())
    np.testing.assert_allclose(means(found), expected - expected.mean(), atol=1e-4)
    assert sum(means(found)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("prior", [0.1, 1.0, 5.0])
def test_the_prior_is_so_many_ties_of_each_two(prior: float) -> None:
    first, second, wins = comparisons(60, 1)

    def surprise(theta: np.ndarray) -> float:
        ahead = theta[first.numpy()] - theta[second.numpy()]
        seen = wins.numpy() * np.logaddexp(0, -ahead) + (1 - wins.numpy()) * np.logaddexp(0, ahead)
        pairs = {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
        ties = sum(np.logaddexp(0, theta[a] - theta[b]) + np.logaddexp(0, theta[b] - theta[a]) for a, b in pairs)
        return float(seen.sum() + prior / 2 * ties)

    best = scipy.optimize.minimize(surprise, np.zeros(4), method="BFGS", options={"gtol": 1e-7}).x
    found = bradley_terry(first, second, wins, torch.arange(60), prior, draws=2)
    np.testing.assert_allclose(means(found), best - best.mean(), atol=1e-4)


def test_two_models_have_the_odds_of_their_wins() -> None:
    """13 of 20 with half a win more on each side: log(13.5 / 7.5)."""
    wins = torch.tensor([1.0] * 13 + [0.0] * 7)
    zeros, ones = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)
    better, worse = bradley_terry(zeros, ones, wins, torch.arange(20), draws=50)
    assert better.mean - worse.mean == pytest.approx(math.log(13.5 / 7.5), abs=1e-9)
    swapped = bradley_terry(ones, zeros, 1 - wins, torch.arange(20), draws=50)
    assert swapped[0].mean == pytest.approx(better.mean, abs=1e-9)


def test_elo_points_are_odds() -> None:
    even, strong = elo(Estimate(0.0, -1.0, 1.0, 9)), elo(Estimate(math.log(10.0), 0.0, math.inf, 9))
    assert (even.mean, even.n) == (1000.0, 9)
    assert strong.mean == pytest.approx(1400.0)
    assert strong.high == math.inf
    assert even.high - even.low == pytest.approx(2 * ELO)
    assert 1 / (1 + 10 ** (-(strong.mean - even.mean) / 400)) == pytest.approx(10 / 11)


def test_a_model_that_never_loses_has_no_upper_end() -> None:
    """0 beats 1, 1 and 2 beat each other, and 2 beats 3, which never wins."""
    first = torch.tensor([0, 1, 2, 2] * 30)
    second = torch.tensor([1, 2, 1, 3] * 30)
    found = bradley_terry(first, second, torch.ones(120), torch.arange(120))
    best, middle, other, worst = found
    assert all(math.isfinite(mean) for mean in means(found))
    assert best.high == math.inf and best.mean > best.low > middle.mean
    assert worst.low == -math.inf and math.isfinite(worst.high)
    assert (middle.low, middle.high) == (other.low, other.high) == (-math.inf, math.inf), (
        "between two that nothing bounds"
    )
    tied = bradley_terry(first, second, torch.cat([torch.ones(116), torch.full((4,), 0.5)]), torch.arange(120))
    assert all(math.isfinite(one.low) and math.isfinite(one.high) for one in tied), "a tie is half a loss"


def seen_through_luck(spread: float) -> list[float]:
    """Strengths that fit the pairwise rates of very many prompts, whose luck differs from one to the next."""
    draw = torch.Generator().manual_seed(9)
    strength = torch.from_numpy(TRUTH) + spread * torch.randn(100_000, 4, generator=draw, dtype=torch.float64)
    rate = torch.sigmoid(strength[:, :, None] - strength[:, None, :]).mean(0).numpy()

    def surprise(theta: np.ndarray) -> float:
        return float((rate * np.logaddexp(0, theta[None] - theta[:, None])).sum())

    found = scipy.optimize.minimize(surprise, np.zeros(4), method="BFGS").x
    return (found - found.mean()).tolist()


def test_intervals_hold_the_truth_and_draw_prompts() -> None:
    """Four models on 60 prompts, on each of which one model is luckier than another: all comparisons of a prompt share that."""
    truth = seen_through_luck(2.0)
    pairs = torch.combinations(torch.arange(4))
    first, second = pairs.T.repeat(1, 60)
    clusters = torch.arange(60).repeat_interleave(6)
    held = alone = 0
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        strength = torch.from_numpy(TRUTH) + 2.0 * torch.randn(60, 4, generator=draw, dtype=torch.float64)
        ahead = strength[clusters, first] - strength[clusters, second]
        wins = (torch.rand(360, generator=draw) < torch.sigmoid(ahead)).double()

        def hits(drawn: torch.Tensor, wins: torch.Tensor = wins, seed: int = seed) -> int:
            found = bradley_terry(first, second, wins, drawn, draws=200, seed=seed)
            return sum(one.low <= value <= one.high for one, value in zip(found, truth, strict=True))

        held += hits(clusters)
        alone += hits(torch.arange(360))
    assert 0.90 <= held / 240 <= 0.99
    assert alone / 240 < 0.9


def test_what_cannot_be_ranked() -> None:
    zero, one, two = (torch.full((3,), k) for k in (0, 1, 2))
    with pytest.raises(ValueError, match="comparison 0 is of a model with itself"):
        bradley_terry(zero, zero, torch.ones(3), torch.arange(3))
    with pytest.raises(ValueError, match="models 0 and 2 were not compared, not even by way of others"):
        bradley_terry(torch.cat([zero, two]), torch.cat([one, two + 1]), torch.ones(6), torch.arange(6))
    with pytest.raises(ValueError, match="models 0 and 1 were not compared"):
        bradley_terry(zero, two, torch.ones(3), torch.arange(3))
    with pytest.raises(ValueError, match="the prior is 0"):
        bradley_terry(zero, one, torch.ones(3), torch.arange(3), prior=0)
    with pytest.raises(ValueError, match="there are no comparisons"):
        bradley_terry(zero[:0], one[:0], torch.ones(0), torch.arange(0))
