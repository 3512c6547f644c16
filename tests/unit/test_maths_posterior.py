"""What a linear head is sure of, against slower ways to the same numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch

from whelp.maths.posterior import CURVATURE, PRIOR_PRECISION, expected_preference, head_posterior


def hidden_states(count: int, width: int, seed: int) -> torch.Tensor:
    """Far from zero, and wide in some directions only."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) * torch.logspace(-2, 1, width) + 3.0


def pair_by_pair(learned: np.ndarray, pairs: float, asked: np.ndarray) -> list[float]:
    """The covariance of the weights shrinks with every two answers that are compared (Sherman and Morrison 1950)."""
    covariance = np.eye(learned.shape[1]) / PRIOR_PRECISION
    for one, other in itertools.product(learned, learned):
        difference = one - other
        push = covariance @ difference
        told = CURVATURE * pairs / len(learned) ** 2
        covariance -= told * np.outer(push, push) / (1.0 + told * difference @ push)
    return [float((x - learned.mean(0)) @ covariance @ (x - learned.mean(0))) for x in asked]


@pytest.mark.parametrize("pairs", [20, 400])
def test_the_variance_of_a_score_is_what_the_pairs_leave_open(pairs: int) -> None:
    learned, asked = hidden_states(40, 7, 1), hidden_states(5, 7, 2)
    posterior = head_posterior(learned, pairs)
    expected = pair_by_pair(learned.double().numpy(), pairs, asked.double().numpy())
    assert posterior.mean.shape == (7,)
    assert posterior.root.shape == (7, 7)
    assert posterior.variance(asked).tolist() == pytest.approx(expected, rel=1e-4)
    assert posterior.variance(asked[:4].reshape(2, 2, 7)).shape == (2, 2)


def test_heads_drawn_from_the_posterior_disagree_as_much_as_it_says() -> None:
    learned, asked = hidden_states(60, 4, 3), hidden_states(3, 4, 4)
    posterior = head_posterior(learned, 60)
    heads = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0)) @ posterior.root.T
    scores = (asked - posterior.mean) @ heads.T
    assert scores.var(1).tolist() == pytest.approx(posterior.variance(asked).tolist(), rel=0.02)


def test_what_nothing_was_ranked_of_stays_as_the_prior_has_it() -> None:
    """The last direction is the same in all answers; the first was seen in many sizes."""
    learned = hidden_states(1000, 3, 5)
    learned[:, 2] = 3.0
    posterior = head_posterior(learned, 1000)
    unseen = posterior.mean + torch.tensor([0.0, 0.0, 2.0])
    seen = posterior.mean + torch.tensor([2.0, 0.0, 0.0]) * learned[:, 0].std()
    assert float(posterior.variance(unseen)) == pytest.approx(4.0 / PRIOR_PRECISION, rel=1e-5)
    assert float(posterior.variance(seen)) < 0.02
    assert float(posterior.variance(posterior.mean)) == 0.0


def test_more_pairs_leave_less_open() -> None:
    learned, asked = hidden_states(50, 5, 6), hidden_states(8, 5, 7)
    assert (head_posterior(learned, 500).variance(asked) < head_posterior(learned, 50).variance(asked)).all()


def test_one_answer_says_nothing() -> None:
    posterior = head_posterior(hidden_states(1, 3, 8), 1)
    assert torch.equal(posterior.root, torch.eye(3))


@pytest.mark.parametrize("margin", [-3.0, -0.5, 0.0, 0.7, 4.0])
@pytest.mark.parametrize("variance", [0.0, 0.3, 2.0, 20.0])
def test_an_expected_preference_is_the_integral_that_it_stands_for(margin: float, variance: float) -> None:
    def height(x: float) -> float:
        return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) / (1 + math.exp(-(margin + math.sqrt(variance) * x)))

    integral, _ = scipy.integrate.quad(height, -9, 9)
    found = expected_preference(torch.tensor(margin), torch.tensor(variance)).item()
    assert found == pytest.approx(integral, abs=0.02)
    if variance == 0:
        assert found == pytest.approx(1 / (1 + math.exp(-margin)))
