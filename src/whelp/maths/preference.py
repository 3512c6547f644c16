"""The Bradley-Terry model of preferences: P(i better than j) = sigmoid(r_i - r_j)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from whelp.maths.masked import masked_row_sums
from whelp.maths.outputs import LossSum, Quantity, Rewards, TokenScores


@dataclass(frozen=True, slots=True)
class PreferenceTargets:
    """The comparisons among the K completions of each prompt.

    `group[b]` names the prompt and `slot[b]` the place of completion b in it; `probability[b, j]` is how likely b is
    better than the completion in slot j: 1 surely, 0.5 a tie, NaN where the two were not compared.
    """

    group: Int[Tensor, "B"]
    slot: Int[Tensor, "B"]
    probability: Float[Tensor, "B K"]


def comparisons(
    targets: PreferenceTargets,
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Each compared pair once: rows i and j, P(i better than j), and the weight 1 / (pairs of that prompt)."""
    groups, inverse = targets.group.unique(return_inverse=True)
    slots = targets.probability.shape[1]
    row_of = torch.full((len(groups), slots), -1, dtype=torch.long, device=inverse.device)
    row_of[inverse, targets.slot] = torch.arange(len(inverse), device=inverse.device)
    later = torch.arange(slots, device=inverse.device)[None, :] > targets.slot[:, None]
    first, other_slot = torch.where(later & ~targets.probability.isnan())
    second = row_of[inverse[first], other_slot]
    pairs_of_group = torch.bincount(inverse[first], minlength=len(groups))
    weight = 1.0 / pairs_of_group[inverse[first]].to(targets.probability.dtype)
    return first, second, targets.probability[first, other_slot], weight


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """K-wise loss -1/C(K,2) * sum over pairs of log sigmoid(r_w - r_l), counted per prompt (InstructGPT, eq. 1).

    A pair with probability p contributes the cross-entropy to p, so that a tie (0.5) pulls the two together.
    Ensemble members are summed: each has its own weights, so each sees its own loss.
    """

    quantity: ClassVar[Quantity] = "rewards"

    def count(self, targets: PreferenceTargets) -> float:
        first, _, _, _ = comparisons(targets)
        return float(len(targets.group[first].unique()))

    def __call__(self, outputs: Rewards, targets: PreferenceTargets) -> LossSum:
        first, second, probability, weight = comparisons(targets)
        margin = outputs.rewards[:, first] - outputs.rewards[:, second]
        per_pair = F.binary_cross_entropy_with_logits(margin, probability.expand_as(margin), reduction="none")
        members = len(outputs.rewards)
        signed = torch.sign(probability - 0.5) * margin
        correct = torch.where(signed == 0, 0.5, (signed > 0).to(margin.dtype))  # a tie counts half, as a guess would
        return LossSum(
            (per_pair * weight).sum(),
            {
                "loss": (per_pair.detach() * weight).sum() / members,
                "accuracy": (correct * weight).sum().detach() / members,
                "margin": (signed.detach() * weight).sum() / members,
            },
        )


@dataclass(frozen=True, slots=True)
class DPOTargets(PreferenceTargets):
    """The comparisons, and log pi_ref(y | x) of each whole completion."""

    ref_logprobs: Float[Tensor, "B"]


@dataclass(frozen=True, slots=True)
class DPOLoss:
    """Bradley-Terry on the reward that a policy implies, beta * log(pi / pi_ref) (Rafailov et al. 2023, eq. 7), K-wise and with
    ties as in `BradleyTerry`."""

    beta: float = 0.1
    quantity: ClassVar[Quantity] = "logprobs"

    def count(self, targets: DPOTargets) -> float:
        return BradleyTerry().count(targets)

    def __call__(self, outputs: TokenScores, targets: DPOTargets) -> LossSum:
        logprobs = masked_row_sums(outputs.logprobs, outputs.is_response)
        return BradleyTerry()(Rewards(self.beta * (logprobs - targets.ref_logprobs)[None]), targets)
