"""Intervals and tests: how sure the numbers are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whelp.types import Estimate


def wilson(successes: float, n: int, z: float = 1.959964) -> Estimate:
    """Wilson's score interval for a rate (Wilson 1927); NaN for n = 0."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half), n)


def clusters_of(names: Sequence[str]) -> Int[Tensor, "N"]:
    """A number for each name, the same for the same name, in the order in which they first come."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)


def clustered_bootstrap(
    values: Float[Tensor, "N"], clusters: Int[Tensor, "N"], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of `values` with the percentile interval of a bootstrap that draws whole clusters (prompts) with replacement."""
    if len(values) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    names, index = clusters.unique(return_inverse=True)
    total = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, values.double())
    size = torch.zeros(len(names), dtype=torch.float64).index_add_(
        0, index, torch.ones_like(values, dtype=torch.float64)
    )
    drawn = torch.randint(len(names), (draws, len(names)), generator=torch.Generator().manual_seed(seed))
    means = total[drawn].sum(1) / size[drawn].sum(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(values.double().mean()), low, high, len(names))


def partial_correlation(
    x: Float[Tensor, "N"],
    y: Float[Tensor, "N"],
    given: Float[Tensor, "N"],
    clusters: Int[Tensor, "N"],
    drawn_by: Int[Tensor, "N"] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Correlation of x and y within clusters where both have lost what `given` explains of them linearly, with the percentile
    interval of a bootstrap over clusters, or over what several of them share by `drawn_by`. NaN where one of the three does
    not vary."""
    names, index = clusters.unique(return_inverse=True)
    columns = torch.stack([x, y, given]).double()
    size = torch.bincount(index).double()
    mean = torch.zeros(3, len(names), dtype=torch.float64).index_add_(1, index, columns) / size
    centred = columns - mean[:, index]
    products = torch.einsum("in,jn->ijn", centred, centred)
    units, unit = (clusters if drawn_by is None else drawn_by).unique(return_inverse=True)
    sums = torch.zeros(3, 3, len(units), dtype=torch.float64).index_add_(2, unit, products)

    def correlation(total: Float[Tensor, "3 3 D"]) -> Float[Tensor, "D"]:
        spread = total.diagonal(dim1=0, dim2=1).T.sqrt()
        r = total / (spread[:, None] * spread[None])
        return (r[0, 1] - r[0, 2] * r[1, 2]) / ((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)).sqrt()

    drawn = torch.randint(len(units), (draws, len(units)), generator=torch.Generator().manual_seed(seed))
    found = correlation(sums[:, :, drawn].sum(3))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.nanquantile(found, ends).tolist()
    return Estimate(float(correlation(sums.sum(2, keepdim=True))), low, high, len(units))


def correlation(x: Float[Tensor, "N"], y: Float[Tensor, "N"]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])


def partial_slope(
    x: Float[Tensor, "N"], y: Float[Tensor, "N"], given: Float[Tensor, "N"], clusters: Int[Tensor, "N"]
) -> float:
    """How much more of x comes with one more of y within clusters, at equal `given`: least squares with a constant for each
    cluster. 0 where y does not vary beside `given`."""
    names, index = clusters.unique(return_inverse=True)
    columns = torch.stack([x, y, given]).double()
    size = torch.bincount(index).double()
    mean = torch.zeros(3, len(names), dtype=torch.float64).index_add_(1, index, columns) / size
    score, length, rank = columns - mean[:, index]
    if rank.square().sum() > 0:
        length = length - rank * (length @ rank) / (rank @ rank)
    square = float(length @ length)
    return float(score @ length) / square if square > 1e-12 else 0.0


def logistic_fit(
    features: Float[Tensor, "N D"], labels: Float[Tensor, "N"], ridge: float = 1e-3, steps: int = 50
) -> Float[Tensor, "D"]:
    """Weights of a logistic regression without intercept, by Newton's method on the ridge-penalised likelihood.

    Without an intercept the fit is antisymmetric: swapping the sides of a comparison (negating its features) swaps the
    probability, which is what a model of paired comparisons must do.
    """
    x, y = features.double(), labels.double()
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (p - y) / len(y) + ridge * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(y) + penalty
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return weights.to(features.dtype)


def length_controlled_win_rate(
    wins: Float[Tensor, "N"], length_difference: Float[Tensor, "N"], draws: int = 500, seed: int = 0
) -> Estimate:
    """Win rate at equal length: the logistic regression of a win on the standardised difference in length, read off at
    difference zero (after Dubois et al. 2024), with a bootstrap over prompts."""
    scale = length_difference.double().std(correction=0).clamp_min(1e-9)
    features = torch.stack(
        [torch.ones_like(wins, dtype=torch.float64), torch.tanh(length_difference.double() / scale)], 1
    )

    def rate(rows: Tensor) -> float:
        return float(torch.sigmoid(logistic_fit(features[rows], wins.double()[rows])[0]))

    generator = torch.Generator().manual_seed(seed)
    everything = torch.arange(len(wins))
    samples = [rate(torch.randint(len(wins), (len(wins),), generator=generator)) for _ in range(draws)]
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(samples, dtype=torch.float64), ends).tolist()
    return Estimate(rate(everything), low, high, len(wins))
