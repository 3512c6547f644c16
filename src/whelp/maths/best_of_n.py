"""Best-of-n: what picking the best of n answers earns and costs. PPO should earn more at the same KL."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def expected_best(scores: Float[Tensor, "N"], n: int) -> float:
    """Mean of the best of `n` of the N scores over all choices without repetition: an unbiased estimate of what best-of-n
    earns (Nakano et al. 2021, section 3.3, in closed form over the order statistics).

    Raises `ValueError` for n outside 1..N.
    """
    count = len(scores)
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} of {count} scores: expected n from 1 to {count}")
    weights = [math.comb(k - 1, n - 1) / math.comb(count, n) for k in range(1, count + 1)]
    return float(scores.double().sort().values @ torch.tensor(weights, dtype=torch.float64))


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n nats: no less than the KL of best-of-n to what it picks from (Beirami et al. 2024, theorem 1), and
    near it where single answers are rare."""
    return math.log(n) - (n - 1) / n
