"""Best-of-n, the anchor: its KL stays under log n - (n - 1) / n, and no best-of-n beats the optimum at its own price.

The answers of the exact world are enumerated: the best of n draws is y with probability F(y)^n - F(worse than y)^n, where F sums
pi_ref over all answers that are no better.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exact_world import World, log_probabilities_in, make_chat, save_model
from torch import Tensor

from whelp.engines.devices import Compute
from whelp.maths.best_of_n import expected_best, kl_bound


@pytest.fixture(scope="module")
def log_ref(tmp_path_factory: pytest.TempPathFactory, compute: Compute) -> Tensor:
    folder, chat = tmp_path_factory.mktemp("world"), make_chat()
    save_model(folder, chat, 0)
    return log_probabilities_in(folder, chat, compute)


def best_of(n: int, probability: Tensor, rewards: Tensor) -> Tensor:
    """Probability of every answer to be the best of n draws, for one prompt."""
    order = rewards.argsort()
    up_to = probability[order].cumsum(0)
    before = torch.cat([torch.zeros(1, dtype=up_to.dtype), up_to[:-1]])
    result = torch.empty_like(probability)
    result[order] = up_to**n - before**n
    return result


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_its_kl_stays_under_the_bound(log_ref: Tensor, record_property: Callable[[str, float], None], n: int) -> None:
    world, kls = World.random(0, 0.5), []
    for log_p, rewards in zip(log_ref.double().log_softmax(-1), world.rewards, strict=True):  # n rounding errors multiply
        best = best_of(n, log_p.exp(), rewards)
        assert float(best.sum()) == pytest.approx(1.0, abs=1e-5)
        kls.append(float(torch.special.xlogy(best, best).sum() - (best * log_p).sum()))
    record_property("KL", max(kls))
    record_property("bound", kl_bound(n))
    assert max(kls) <= kl_bound(n) + 1e-5
    assert n > 4 or max(kls) > 0.9 * kl_bound(n), "near the bound while every answer is rare"


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_optimum_earns_more_at_the_same_price(log_ref: Tensor, n: int) -> None:
    for kl_coef in (0.2, 0.5, 1.0):
        world = World.random(1, kl_coef)
        best = torch.stack([best_of(n, p.exp(), r) for p, r in zip(log_ref, world.rewards, strict=True)])
        assert world.objective(best.clamp_min(1e-30).log(), log_ref) < world.objective(world.optimum(log_ref), log_ref)


def test_the_estimate_from_draws_is_the_enumerated_mean(log_ref: Tensor) -> None:
    probability, rewards = log_ref[0].exp(), World.random(0, 0.5).rewards[0]
    draws = torch.multinomial(probability, 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    for n in (2, 8):
        exact = float(best_of(n, probability, rewards) @ rewards)
        groups = rewards[draws].reshape(-1, 16)
        estimates = torch.tensor([expected_best(group, n) for group in groups])
        assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / len(groups) ** 0.5)
