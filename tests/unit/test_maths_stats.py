"""Statistics against a closed form, a published example or another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from maths_helpers import randn

from whelp.maths.stats import (
    Estimate,
    clustered_bootstrap,
    length_controlled_win_rate,
    logistic_fit,
    partial_correlation,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (5, 10), (81, 263), (1, 1), (999, 1000)])
def test_wilson_solves_its_quadratic(successes, n):
    """The ends are the rates p with |rate - p| = z sqrt(p (1 - p) / n)."""
    z, rate = 1.959964, successes / n
    roots = np.roots([1 + z * z / n, -(2 * rate + z * z / n), rate * rate])
    estimate = wilson(successes, n)
    assert [estimate.low, estimate.high] == pytest.approx(sorted(np.clip(roots.real, 0, 1)), abs=1e-9)
    assert (estimate.mean, estimate.n) == (rate, n)


def test_wilson_of_a_published_example():
    """Newcombe 1998, table I: 81 of 263, score method without continuity correction."""
    estimate = wilson(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_of_nothing_nothing_is_known():
    assert math.isnan(wilson(0, 0).mean)
    assert math.isnan(clustered_bootstrap(torch.zeros(0), torch.zeros(0, dtype=torch.long)).mean)
    assert wilson(3, 4).as_dict().keys() == {"mean", "low", "high", "n"}


def test_the_bootstrap_covers_the_truth_when_answers_of_a_prompt_are_alike():
    """30 prompts, 4 answers each, most of the variance between prompts: ~95% with clusters, far less without."""
    hits = naive = 0
    clusters = torch.arange(30).repeat_interleave(4)
    for seed in range(150):
        values = randn(30, seed=seed).repeat_interleave(4) + 0.3 * randn(120, seed=1000 + seed)
        estimate = clustered_bootstrap(values, clusters, draws=300, seed=seed)
        hits += estimate.low <= 0.0 <= estimate.high
        alone = clustered_bootstrap(values, torch.arange(120), draws=300, seed=seed)
        naive += alone.low <= 0.0 <= alone.high
    assert 0.88 <= hits / 150 <= 0.99
    assert naive / 150 < 0.8


def test_the_bootstrap_knows_its_mean_and_its_units():
    values, clusters = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([7, 7, 7, 9])
    estimate = clustered_bootstrap(values, clusters)
    assert estimate.mean == 4.0
    assert estimate.n == 2
    # Two clusters, drawn twice each: 2, (6 + 10) / 4 or 10.
    assert (estimate.low, estimate.high) == (2.0, 10.0)
    assert clustered_bootstrap(values, clusters, seed=3) == clustered_bootstrap(values, clusters, seed=3)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("separable", [False, True])
def test_logistic_fit_against_scipy(ridge, separable):
    x = randn(60, 3).double()
    score = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    noise = 0.0 if separable else randn(60, seed=5).double() * 2
    y = ((score + noise) > 0).double()

    def objective(w):
        z = x.numpy() @ w
        return np.mean(np.logaddexp(0, z) - y.numpy() * z) + ridge / 2 * w @ w

    expected = scipy.optimize.minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(logistic_fit(x, y, ridge=ridge).numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_logistic_fit_does_not_run_away(scale):
    """Newton's step overshoots where the data are separated widely."""
    x = scale * randn(40, 2).double()
    y = (x[:, 0] > 0).double()
    weights = logistic_fit(x, y)
    p = torch.sigmoid(x @ weights)
    gradient = x.T @ (p - y) / len(y) + 1e-3 * weights
    assert weights.isfinite().all()
    assert gradient.abs().max() < 1e-6


def test_logistic_fit_is_antisymmetric():
    x, y = randn(50, 2), (randn(50, seed=3) > 0).float()
    torch.testing.assert_close(logistic_fit(-x, 1 - y), logistic_fit(x, y))


def test_length_controlled_win_rate_sees_through_length():
    """A judge who likes length; answers of equal quality, but those of the first are longer."""
    difference = 40 * randn(1200) + 60
    scale = difference.double().std(correction=0)
    p = torch.sigmoid(2.0 * torch.tanh(difference.double() / scale))
    wins = torch.bernoulli(p, generator=torch.Generator().manual_seed(1)).float()
    estimate = length_controlled_win_rate(wins, difference, draws=60)
    assert wins.mean() > 0.7
    assert estimate.low < 0.5 < estimate.high
    assert estimate.n == 1200


def test_length_controlled_win_rate_recovers_a_planted_one():
    difference = 40 * randn(3000) - 30
    scale = difference.double().std(correction=0)
    p = torch.sigmoid(scipy.special.logit(0.7) + 1.5 * torch.tanh(difference.double() / scale))
    wins = torch.bernoulli(p, generator=torch.Generator().manual_seed(1)).float()
    estimate = length_controlled_win_rate(wins, difference, draws=60)
    assert abs(float(wins.mean()) - 0.7) > 0.1
    assert estimate.mean == pytest.approx(0.7, abs=0.04)
    assert estimate.low < 0.7 < estimate.high


def test_length_controlled_win_rate_of_equal_lengths_is_the_win_rate():
    wins = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5] * 20)
    estimate = length_controlled_win_rate(wins, torch.zeros(100), draws=20)
    assert estimate.mean == pytest.approx(0.7, abs=0.002)
    assert isinstance(estimate, Estimate)


def test_a_partial_correlation_is_that_of_the_residuals():
    """Within 40 prompts: residuals of two regressions on `given`, by least squares, and their correlation."""
    clusters = torch.arange(200) // 5
    given, noise = randn(200, seed=1).double(), randn(200, seed=2).double()
    x = given + noise + 3.0 * clusters
    y = -2 * given + 0.5 * noise + randn(200, seed=3).double()
    columns = [column.numpy().copy() for column in (x, y, given)]
    for column in columns:
        for prompt in range(40):
            column[prompt * 5 : prompt * 5 + 5] -= column[prompt * 5 : prompt * 5 + 5].mean()
    left = [c - columns[2] * np.linalg.lstsq(columns[2][:, None], c, rcond=None)[0] for c in columns[:2]]
    estimate = partial_correlation(x, y, given, clusters)
    assert estimate.mean == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)
    assert (estimate.low, estimate.n) == (pytest.approx(estimate.mean, abs=0.2), 40)
    assert estimate.low < estimate.mean < estimate.high


def test_what_only_quality_explains_has_no_partial_correlation():
    clusters, given = torch.arange(2000) // 4, randn(2000, seed=4)
    estimate = partial_correlation(given + randn(2000, seed=5), given + randn(2000, seed=6), given, clusters)
    assert estimate.low < 0 < estimate.high
    assert np.corrcoef(given + randn(2000, seed=5), given + randn(2000, seed=6))[0, 1] > 0.4


def test_nothing_is_known_of_what_does_not_vary():
    one = torch.ones(6)
    assert math.isnan(partial_correlation(one, randn(6), randn(6, seed=1), torch.arange(6) // 2).mean)
