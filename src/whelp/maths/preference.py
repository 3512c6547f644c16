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
    better than the completion in slot j: 1 surely, 0.5 a tie, NaN where the two were not compared. `margin[b]` is what the
    better of two is to be ahead by, `weight[b]` how much the prompt counts; both are the same for all completions of a prompt.
    """

    group: Int[Tensor, "B"]
    slot: Int[Tensor, "B"]
    probability: Float[Tensor, "B K"]
    margin: Float[Tensor, "B"]
    weight: Float[Tensor, "B"]


def comparisons(
    targets: PreferenceTargets,
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Each compared pair once: rows i and j, P(i better than j), and its weight: the prompt's over the number of its pairs."""
    groups, inverse = targets.group.unique(return_inverse=True)
    slots = targets.probability.shape[1]
    row_of = torch.full((len(groups), slots), -1, dtype=torch.long, device=inverse.device)
    row_of[inverse, targets.slot] = torch.arange(len(inverse), device=inverse.device)
    later = torch.arange(slots, device=inverse.device)[None, :] > targets.slot[:, None]
    first, other_slot = torch.where(later & ~targets.probability.isnan())
    second = row_of[inverse[first], other_slot]
    pairs_of_group = torch.bincount(inverse[first], minlength=len(groups))
    weight = targets.weight[first] / pairs_of_group[inverse[first]]
    return first, second, targets.probability[first, other_slot], weight


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """K-wise loss -1/C(K,2) * sum over pairs of log sigmoid(r_w - r_l - margin), counted per prompt by its weight (Ouyang et al.
    2022, InstructGPT, eq. 1; the margin: Touvron et al. 2023, Llama 2, eq. 2).

    A pair with probability p contributes the cross-entropy to p, so that a tie (0.5) pulls the two together; it has no margin.
    `center` times the mean of (r_w + r_l)^2 keeps the scores around zero, which differences alone leave open (Eisenstein et al.
    2023, eq. 2). Ensemble members are summed: each has its own weights, so each sees its own loss.
    """

    center: float = 0.0
    quantity: ClassVar[Quantity] = "rewards"

    def count(self, targets: PreferenceTargets) -> float:
        return float(comparisons(targets)[3].sum())

    def __call__(self, outputs: Rewards, targets: PreferenceTargets) -> LossSum:
        first, second, probability, weight = comparisons(targets)
        ahead = outputs.rewards[:, first] - outputs.rewards[:, second]
        side = torch.sign(probability - 0.5)
        per_pair = F.binary_cross_entropy_with_logits(
            ahead - side * targets.margin[first], probability.expand_as(ahead), reduction="none"
        )
        if self.center:
            per_pair = per_pair + self.center * (outputs.rewards[:, first] + outputs.rewards[:, second]) ** 2
        members = len(outputs.rewards)
        signed = side * ahead
        correct = torch.where(signed == 0, 0.5, (signed > 0).to(ahead.dtype))  # a tie counts half, as a guess would
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
