"""Strengths of many models from comparisons of two: Bradley-Terry, and the same on Elo's scale."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whelp.maths.stats import percentile_interval
from whelp.types import Estimate

ELO = 400.0 / math.log(10.0)
"""Elo points in one unit of log-odds: 400 points are odds of ten to one (Elo 1978)."""
STEPS = 100


def bradley_terry(
    first: Int[Tensor, "N"],
    second: Int[Tensor, "N"],
    wins: Float[Tensor, "N"],
    clusters: Int[Tensor, "N"],
    prior: float = 1.0,
    draws: int = 500,
    seed: int = 0,
) -> list[Estimate]:
    """Strengths theta of models 0..M-1 in log-odds, P(i beats j) = sigmoid(theta_i - theta_j) (Bradley & Terry 1952), with the
    percentile intervals of a bootstrap that draws whole clusters (prompts). The mean of the strengths is 0.

    `wins` is 1 where the model `first` won, 0 where `second` did, 0.5 for a tie, which is half a win for each. Two models that
    were compared at all are given `prior` ties more (with 1, half a win each, as Anscombe 1956 has it for one rate), so that
    one that always wins has a finite strength. How strong it may be has no end all the same: its interval reaches to infinity,
    as does that of every model that beat one from which no chain of wins leads back (Ford 1957).

    Raises `ValueError` for a prior that is not above 0, no comparison, one of a model with itself, and models that were not
    compared, not even by way of others.
    """
    if prior <= 0:
        raise ValueError(f"the prior is {prior}; expected a number of ties above 0")
    if len(first) == 0:
        raise ValueError("there are no comparisons; expected at least one")
    if bool((first == second).any()):
        raise ValueError(f"comparison {int((first == second).nonzero()[0])} is of a model with itself")
    names, cluster = clusters.unique(return_inverse=True)
    won = _tables(first, second, wins.double(), cluster)
    total = won.sum(0)
    ties = 0.5 * prior * (total + total.T > 0)
    drawn = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(draws, len(names), dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    is_unbounded = _is_unbounded(total)
    strengths = _fit(total[None] + ties)[0].tolist()
    again = _fit(torch.einsum("dc,cij->dij", times, won) + ties)
    result = []
    for model, strength in enumerate(strengths):
        low, high = percentile_interval(again[:, model], len(names))
        below, above = is_unbounded[:, model].tolist()
        result.append(Estimate(strength, -math.inf if below else low, math.inf if above else high, len(names)))
    return result


def elo(strength: Estimate, average: float = 1000.0) -> Estimate:
    """A strength on Elo's scale, where the average model has `average` points."""
    mean, low, high = (average + ELO * value for value in (strength.mean, strength.low, strength.high))
    return Estimate(mean, low, high, strength.n)


def _tables(
    first: Int[Tensor, "N"], second: Int[Tensor, "N"], wins: Float[Tensor, "N"], cluster: Int[Tensor, "N"]
) -> Float[Tensor, "C M M"]:
    """How often i beat j in each cluster."""
    models = int(torch.cat([first, second]).max()) + 1
    won = torch.zeros(int(cluster.max()) + 1, models, models, dtype=torch.float64)
    won.index_put_((cluster, first, second), wins, accumulate=True)
    return won.index_put_((cluster, second, first), 1.0 - wins, accumulate=True)


def _fit(won: Float[Tensor, "D M M"]) -> Float[Tensor, "D M"]:
    """Maximum of the likelihood by Newton's method, for D tables at once: won[d, i, j] is how often i beat j."""
    draws, models, _ = won.shape
    games = won + won.mT
    mean = torch.full((models, models), 1.0 / models, dtype=torch.float64)  # the likelihood does not see it
    strengths = torch.zeros(draws, models, dtype=torch.float64)
    for _ in range(STEPS):
        p = torch.sigmoid(strengths[:, :, None] - strengths[:, None, :])
        weight = games * p * (1.0 - p)
        curvature = torch.diag_embed(weight.sum(2)) - weight
        step = torch.linalg.solve(curvature + mean, (won - games * p).sum(2))
        longest = step.abs().amax(1, keepdim=True).clamp_min(1.0)  # far off, a whole step goes too far
        strengths = strengths + step / longest
        if step.abs().max() < 1e-10:
            break
    return strengths


def _is_unbounded(won: Float[Tensor, "M M"]) -> Bool[Tensor, "2 M"]:
    """Whether the data leave a model's strength open below, and above."""
    beats = _chains(won > 0)
    related = _chains(beats | beats.T)
    if not bool(related.all()):
        a, b = (~related).nonzero()[0].tolist()
        raise ValueError(
            f"models {a} and {b} were not compared, not even by way of others; compare them, or rank them apart"
        )
    return torch.stack([(beats.T & ~beats).any(1), (beats & ~beats.T).any(1)])


def _chains(beats: Bool[Tensor, "M M"]) -> Bool[Tensor, "M M"]:
    """Whether a chain of wins leads from i to j."""
    for middle in range(len(beats)):
        beats = beats | (beats[:, middle, None] & beats[None, middle])
    return beats
