"""What is done to a score before it becomes a reward, and how strong the leash is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clip_scores(scores: Float[Tensor, "B"], bound: float | None) -> Float[Tensor, "B"]:
    """Scores within +-bound; None leaves them."""
    return scores if bound is None else scores.clamp(-bound, bound)


Aggregation = Literal["mean", "min", "uncertainty"]


@dataclass(slots=True)
class RunningMoments:
    """Mean and spread of all scores so far, joined batch by batch (Chan, Golub, LeVeque 1979, eq. 2.1)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def update(self, scores: Float[Tensor, "B"]) -> None:
        new, batch = scores.double(), len(scores)
        distance, total = float(new.mean()) - self.mean, self.count + batch
        self.squares += float(((new - new.mean()) ** 2).sum()) + distance**2 * self.count * batch / total
        self.mean += distance * batch / total
        self.count = total

    def normalize(self, scores: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Scores less the mean, in units of the standard deviation."""
        return (scores - self.mean) / max((self.squares / self.count) ** 0.5, 1e-6)


def missing_eos(
    scores: Float[Tensor, "B"], is_finished: Bool[Tensor, "B"], penalty: float | None
) -> Float[Tensor, "B"]:
    """Take `penalty` from the score of every answer that was cut off at the length limit."""
    return scores if penalty is None else torch.where(is_finished, scores, scores - penalty)


def preference(ahead: Float[Tensor, "B"], gain: float) -> Float[Tensor, "B"]:
    """How often people would prefer an answer whose score lies `ahead` of a reference's (preference as reward, Fu et al. 2025,
    eq. 6), brought to the score's own unit: 4 * gain * (sigmoid(ahead / gain) - 1/2). It has slope 1 where the two are equal
    and ends at +-2 * gain, so that nothing is won by a score beyond belief. `gain` is what made scores of the raw logits."""
    return 4.0 * gain * (torch.sigmoid(ahead / gain) - 0.5)


@dataclass(slots=True)
class FixedKL:
    """A leash of constant strength."""

    kl_coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Nothing to adapt."""


@dataclass(slots=True)
class AdaptiveKL:
    """Ziegler et al. 2019, eq. 8: e = clip(KL / target - 1, +-0.2); kl_coef *= 1 + e * episodes / horizon."""

    kl_coef: float
    target: float
    horizon: int

    def update(self, kl: float, episodes: int) -> None:
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.kl_coef *= 1.0 + error * episodes / self.horizon


def doubt(rewards: Float[Tensor, "M B"], variance: Float[Tensor, "M B"]) -> Float[Tensor, "B"]:
    """Variance of a score of which each member of an ensemble has an opinion and a variance of its own: that of the opinions,
    and the mean of the variances (the law of total variance)."""
    return rewards.var(0, correction=0) + variance.mean(0)


def aggregate(
    rewards: Float[Tensor, "M B"],
    how: Aggregation,
    uncertainty_coef: float = 0.0,
    variance: Float[Tensor, "M B"] | None = None,
) -> Float[Tensor, "B"]:
    """One score from those of an ensemble: their mean; the worst of them; or the mean less `uncertainty_coef` times their
    `doubt` (Coste et al. 2023, section 3: worst-case and uncertainty-weighted optimization). `variance`: that of each member's
    own score; None: none."""
    if how == "min":
        return rewards.min(0).values
    mean = rewards.mean(0)
    if how == "mean":
        return mean
    return mean - uncertainty_coef * doubt(rewards, torch.zeros_like(rewards) if variance is None else variance)
