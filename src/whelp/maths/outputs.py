"""What a model gives to a loss, and what a loss gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

Quantity = Literal["logprobs", "values", "rewards"]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of response tokens, in the order they stand; columns beyond a sequence's last response token are padding."""

    logprobs: Float[Tensor, "B R"]
    is_response: Bool[Tensor, "B R"]
    entropy: Float[Tensor, "B R"] | None = None
    """In nats; None inside a loss, where nothing needs it."""


@dataclass(frozen=True, slots=True)
class Values:
    """Value of the state *before* each response token."""

    values: Float[Tensor, "B R"]
    is_response: Bool[Tensor, "B R"]


@dataclass(frozen=True, slots=True)
class Rewards:
    """Score at the last token of each sequence, by each ensemble member."""

    rewards: Float[Tensor, "M B"]


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss *summed* over its units (tokens, prompts), with other sums to report under their names."""

    loss: Float[Tensor, ""]
    sums: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Loss(Protocol):
    """A frozen, picklable dataclass. The engine divides by the count of the *whole* batch, so that no result depends on
    how the batch was cut into pieces."""

    quantity: ClassVar[Quantity]
    """Which output of the model the loss reads."""

    def count(self, targets: Any) -> float:
        """Units in these targets, known before any forward pass."""
        ...

    def __call__(self, outputs: Any, targets: Any) -> LossSum: ...
