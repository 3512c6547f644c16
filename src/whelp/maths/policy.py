"""The policy's side of PPO: the shaped reward, the clipped ratio, the clipped value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whelp.maths.masked import last_true, masked_sum
from whelp.maths.outputs import LossSum, Quantity, TokenScores, Values


def shaped_rewards(
    scores: Float[Tensor, "B"],
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    is_response: Bool[Tensor, "B R"],
    kl_coef: float,
) -> Float[Tensor, "B R"]:
    """r_t = -kl_coef * (log pi - log pi_ref) + [t is the last response token] * score (Ziegler et al. 2019, eq. 2).

    The k1 estimator: in the reward it has the right gradient, which k3 has not.
    """
    penalty = -kl_coef * (logprobs - ref_logprobs)
    rewards = torch.where(is_response, penalty, penalty.new_zeros(()))
    return rewards + last_true(is_response) * scores[:, None]


@dataclass(frozen=True, slots=True)
class PPOTargets:
    """`old_logprobs` are those of the policy that sampled, computed by the engine that trains."""

    old_logprobs: Float[Tensor, "B R"]
    advantages: Float[Tensor, "B R"]
    is_response: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class PPOLoss:
    """-min(ratio * A, clip(ratio, 1 +- cliprange) * A), counted per response token (Schulman et al. 2017, eq. 7)."""

    cliprange: float = 0.2
    quantity: ClassVar[Quantity] = "logprobs"

    def count(self, targets: PPOTargets) -> float:
        return float(targets.is_response.sum())

    def __call__(self, outputs: TokenScores, targets: PPOTargets) -> LossSum:
        mask = targets.is_response
        log_ratio = torch.where(mask, outputs.logprobs - targets.old_logprobs, 0.0)
        ratio = log_ratio.exp()
        unclipped = -ratio * targets.advantages
        clipped = -ratio.clamp(1 - self.cliprange, 1 + self.cliprange) * targets.advantages
        loss = masked_sum(torch.maximum(unclipped, clipped), mask)
        with torch.no_grad():
            sums = {
                "loss": loss.detach(),
                "clipfrac": masked_sum((clipped > unclipped).float(), mask),
                "approxkl": masked_sum(0.5 * log_ratio**2, mask),
                "ratio": masked_sum(ratio, mask),
                "ratio_error": masked_sum((ratio - 1).abs(), mask),
            }
        return LossSum(loss, sums)


@dataclass(frozen=True, slots=True)
class ValueTargets:
    old_values: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]
    is_value_target: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """0.5 * max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2), counted per response token."""

    cliprange_value: float = 0.2
    quantity: ClassVar[Quantity] = "values"

    def count(self, targets: ValueTargets) -> float:
        return float(targets.is_value_target.sum())

    def __call__(self, outputs: Values, targets: ValueTargets) -> LossSum:
        mask = targets.is_value_target
        old = targets.old_values
        clipped = torch.clamp(outputs.values, old - self.cliprange_value, old + self.cliprange_value)
        unclipped_error = (outputs.values - targets.returns) ** 2
        clipped_error = (clipped - targets.returns) ** 2
        loss = 0.5 * masked_sum(torch.maximum(unclipped_error, clipped_error), mask)
        with torch.no_grad():
            clipfrac = masked_sum((clipped_error > unclipped_error).float(), mask)
            error = masked_sum(unclipped_error, mask)
        return LossSum(loss, {"loss": loss.detach(), "clipfrac": clipfrac, "error": error})
