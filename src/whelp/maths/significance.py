"""Whether a difference between two models is more than chance, and how many prompts would show one."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whelp.maths.stats import sums_of_clusters


def mcnemar(before: Bool[Tensor, "N"], after: Bool[Tensor, "N"], mid_p: bool = False) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947), for N prompts that each model answers once: of the prompts
    that one model passes and the other does not, each model has half.

    The exact test never rejects more often than it says, and with few such prompts far less often. `mid_p` counts what was
    observed itself by half, and rejects about as often as it says (Fagerland et al. 2013).
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    n, fewer = gained + lost, min(gained, lost)
    ways = 2 * sum(math.comb(n, k) for k in range(fewer + 1))
    if mid_p:
        ways -= math.comb(n, fewer)
    return min(1.0, ways / 2**n)


def sign_flip(
    differences: Float[Tensor, "N"],
    clusters: Int[Tensor, "N"],
    mid_p: bool = True,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of paired differences whose mean may be zero: how often their sum is as far from zero where a coin
    decides in each cluster (prompt) which of the models is which.

    Two models that answer alike could change places in any prompt, so this holds for few prompts, several samples of a prompt
    and any kind of value, where a t-test needs many and a bootstrap's p-value comes out too small. For one answer to each
    prompt that passes or not it is McNemar's test. `mid_p` as there; what was observed is one of the ways it may come out, so
    that no p-value is 0 (Phipson & Smyth 2010).
    """
    totals, _ = sums_of_clusters(differences, clusters)
    totals = totals[totals != 0]
    found, rounding = totals.sum().abs(), 1e-6 * differences.double().abs().sum()
    if found <= rounding:
        return 1.0
    draw = torch.Generator().manual_seed(seed)
    coins = torch.randint(2, (draws, len(totals)), generator=draw, dtype=torch.int8)
    by_chance = ((2 * coins - 1).double() @ totals).abs()
    farther = int((by_chance > found + rounding).sum())
    as_far = 1 + int(((by_chance - found).abs() <= rounding).sum())
    return (farther + as_far * (0.5 if mid_p else 1.0)) / (draws + 1)


def holm(p_values: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """p-values of N tests, corrected so that any false alarm among them is as rare as each one's was alone (Holm 1979): the
    smallest times N, the next one times N - 1 and so on, none below an earlier one or above 1."""
    ordered, order = p_values.sort()
    times = torch.arange(len(p_values), 0, -1, dtype=p_values.dtype)
    corrected = (ordered * times).cummax(0).values.clamp(max=1.0) if len(p_values) else ordered
    return torch.empty_like(p_values).scatter_(0, order, corrected)


def prompts_needed(
    differences: Float[Tensor, "N"], clusters: Int[Tensor, "N"], difference: float = 0.03, power: float = 0.8
) -> int:
    """How many prompts (clusters) it takes to see a true `difference` in pass rate with this `power` by a two-sided test at 5%,
    where single prompts differ as much as here (Connor 1987 on McNemar's test; for several samples of a prompt, the mean square
    of its mean difference takes the place of the discordance).

    `differences` are -1, 0 or 1. Where they are too few for a mean of `difference`, as many are supposed as it needs.
    Raises `ValueError` where nothing was compared.
    """
    if len(differences) == 0:
        raise ValueError("how many prompts are needed is told from some that were compared; there are none")
    totals, sizes = sums_of_clusters(differences, clusters)
    samples = float(sizes.mean())
    discordance = max(float((totals / samples).square().mean()), difference / samples, difference**2)
    normal = NormalDist()
    seen = normal.inv_cdf(0.975) * math.sqrt(discordance) + normal.inv_cdf(power) * math.sqrt(
        discordance - difference**2
    )
    return math.ceil((seen / difference) ** 2)
