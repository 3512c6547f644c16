"""How sure the linear head of a reward model can be of a score: little has been ranked that looks like this answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PRIOR_PRECISION = 1.0
"""Of each weight of the head: N(0, 1) before anything is ranked."""
CURVATURE = 0.25
"""Of -log sigmoid where two answers are equal: what one comparison says at most about a score, in 1 / logits^2."""


@dataclass(frozen=True, slots=True)
class HeadPosterior:
    """Gaussian over the weights of a linear head; its covariance is root @ root.T."""

    mean: Float[Tensor, "H"]
    """Of the hidden states: a score's zero is free, so only what differs from their mean counts."""
    root: Float[Tensor, "H H"]

    def variance(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N"]:
        """Of the score of each hidden state, in the score's unit squared."""
        return ((hidden.float() - self.mean) @ self.root).square().sum(-1)


def head_posterior(hidden: Float[Tensor, "N H"], stand_for: float) -> HeadPosterior:
    """Posterior of a head that has learned from `stand_for` answers, of which `hidden` are a sample: Laplace's approximation of
    the last layer (Daxberger et al. 2021, section 3), with each answer compared to its equal; Zhang et al. 2024 (section 3)
    price a reward's doubt by its last layer alike. Precision is PRIOR_PRECISION * I + CURVATURE * (sum of h h^T), h centred."""
    hidden = hidden.double()
    mean = hidden.mean(0)
    centred = hidden - mean
    eye = torch.eye(hidden.shape[1], dtype=torch.float64)
    precision = PRIOR_PRECISION * eye + CURVATURE * stand_for / len(hidden) * centred.T @ centred
    lower = torch.linalg.cholesky(precision)
    return HeadPosterior(mean.float(), torch.linalg.solve_triangular(lower, eye, upper=False).T.float())
