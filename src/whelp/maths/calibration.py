"""Whether a model of preferences is as sure as it is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whelp.maths.stats import logistic_fit

NOT_SURE = 1000.0
"""A temperature that leaves next to no confidence, and still the side that a model is on."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence: the mean of it, and the share that is right."""

    confidence: float
    accuracy: float
    n: int


def reliability(margin: Float[Tensor, "N"], bins: int = 10) -> list[Bin]:
    """Pairs by how sure the model is of the answer that it puts first, sigmoid(|margin|) from 0.5 to 1, in `bins` of equal width;
    empty ones are left out. `margin` is the better answer's score less the worse one's; a pair at 0 is half right."""
    confidence = torch.sigmoid(margin.double().abs())
    right = torch.where(margin == 0, 0.5, (margin > 0).double())
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    found = []
    for i in range(bins):
        here = place == i
        if bool(here.any()):
            found.append(Bin(float(confidence[here].mean()), float(right[here].mean()), int(here.sum())))
    return found


def expected_calibration_error(margin: Float[Tensor, "N"], bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability`, weighed by their pairs (Guo et al. 2017,
    eq. 3). Chance alone makes it about 1 / sqrt(pairs in a bin)."""
    found = reliability(margin, bins)
    return sum(b.n * abs(b.confidence - b.accuracy) for b in found) / max(1, len(margin))


def temperature(margin: Float[Tensor, "N"]) -> float:
    """T for which sigmoid(margin / T) makes the labels likeliest (Guo et al. 2017, section 4.2): above 1 for a model that is
    surer than it should be. `NOT_SURE` at most, as for one that is more often wrong than right."""
    sureness = float(logistic_fit(margin.double()[:, None], torch.ones(len(margin), dtype=torch.float64), ridge=1e-6))
    return 1.0 / max(sureness, 1.0 / NOT_SURE)


def tempered(margin: Float[Tensor, "N"], clusters: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Margins over the temperature of the *other* half of the clusters, so that no pair takes part in what it is measured with.
    One cluster alone keeps its margins."""
    half = clusters.unique(return_inverse=True)[1] % 2
    result = margin.clone()
    for mine, other in ((half == 0, half == 1), (half == 1, half == 0)):
        if bool(mine.any()) and bool(other.any()):
            result[mine] = margin[mine] / temperature(margin[other])
    return result
