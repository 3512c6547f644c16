"""How sure the linear head of a reward model can be of a score: little has been ranked that looks like this answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PRIOR_PRECISION = 1.0
"""Of each weight of the head: N(0, 1) before anything is ranked."""
CURVATURE = 0.25
"""Of -log sigmoid where two answers are equal: what a pair says at most about the difference of their scores, in 1 / logits^2."""


@dataclass(frozen=True, slots=True)
class HeadPosterior:
    """Gaussian over the weights of a linear head; its covariance is root @ root.T."""

    mean: Float[Tensor, "H"]
    """Of the hidden states: a score's zero is free, so only what differs from their mean counts."""
    root: Float[Tensor, "H H"]

    def variance(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N"]:
        """Of the score of each hidden state, in the score's unit squared."""
        return ((hidden.float() - self.mean) @ self.root).square().sum(-1)


def head_posterior(hidden: Float[Tensor, "N H"], pairs: float) -> HeadPosterior:
    """Posterior of a head that has learned from so many pairs of answers, of which `hidden` are a sample: Laplace's approximation
    of the last layer (Daxberger et al. 2021, section 2) as if any two answers had been compared and found equal; Zhang et al.
    2024 (section 3) price a reward's doubt by its last layer alike. The precision is PRIOR_PRECISION * I + CURVATURE * pairs * D,
    where D, the mean of d d^T over differences d of two answers, is twice their covariance."""
    hidden = hidden.double()
    mean = hidden.mean(0)
    centred = hidden - mean
    eye = torch.eye(hidden.shape[1], dtype=torch.float64)
    differences = 2.0 * centred.T @ centred / len(hidden)
    precision = PRIOR_PRECISION * eye + CURVATURE * pairs * differences
    lower = torch.linalg.cholesky(precision)
    return HeadPosterior(mean.float(), torch.linalg.solve_triangular(lower, eye, upper=False).T.float())


def expected_preference(margin: Float[Tensor, "*N"], variance: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """The mean of sigmoid(x) over x ~ N(margin, variance): how likely a person is to prefer the first of two answers, as far as
    a model knows that doubts its margin (MacKay 1992, "The evidence framework applied to classification networks", equation 10;
    within 0.02 of the integral)."""
    return torch.sigmoid(margin / torch.sqrt(1.0 + torch.pi / 8.0 * variance))
