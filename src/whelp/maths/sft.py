"""Supervised fine-tuning: cross-entropy on the assistant's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from whelp.maths.masked import masked_sum
from whelp.maths.outputs import LossSum, Quantity, TokenScores


@dataclass(frozen=True, slots=True)
class SFTTargets:
    is_response: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """-sum of log p over response tokens, end of turn included; counted per token."""

    quantity: ClassVar[Quantity] = "logprobs"

    def count(self, targets: SFTTargets) -> float:
        return float(targets.is_response.sum())

    def __call__(self, outputs: TokenScores, targets: SFTTargets) -> LossSum:
        loss = -masked_sum(outputs.logprobs, targets.is_response)
        return LossSum(loss, {"loss": loss.detach()})
