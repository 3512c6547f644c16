"""What a reward is: a function from sampled answers to one number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Held
from whelp.types import Completion

Reward = Callable[[Sequence[Completion], Held], Float[Tensor, "B"]]
"""`held` are the completions as sequences, so that a reward model reuses the trunk activations of the rollout."""
