"""Best-of-n against all choices, one by one."""

from __future__ import annotations

import itertools

import pytest
import torch

from whelp.maths.best_of_n import expected_best, kl_bound


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_expected_best_is_the_mean_over_all_choices(n: int) -> None:
    scores = torch.randn(7, generator=torch.Generator().manual_seed(n))
    choices = [max(chosen) for chosen in itertools.combinations(scores.tolist(), n)]
    assert expected_best(scores, n) == pytest.approx(sum(choices) / len(choices), abs=1e-6)


@pytest.mark.parametrize("n", [0, 3])
def test_n_must_fit(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} of 2 scores: expected n from 1 to 2"):
        expected_best(torch.tensor([1.0, 2.0]), n)


def test_the_bound_is_that_of_continuous_scores() -> None:
    """With scores that never tie, best-of-n has the density n F^(n-1): its KL is the integral of n u^(n-1) log(n u^(n-1))."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (1, 2, 5, 16):
        density = n * u ** (n - 1)
        assert kl_bound(n) == pytest.approx(float((density * density.log()).mean()), abs=1e-4)
