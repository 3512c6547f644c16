"""Score by rules: each prompt brings its own check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.checkers import score
from whelp.engines.base import Held
from whelp.errors import DataError
from whelp.monitors.surface import repetition
from whelp.types import Completion

REPETITION_PENALTY = 1.0


@dataclass(frozen=True, slots=True)
class CheckerReward:
    """2 * score - 1 of the prompt's own check, less the share of repeated 4-grams: about -2 to 1.

    Raises `DataError` for a prompt without a check.
    """

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        scores = []
        for completion in completions:
            if completion.prompt.check is None:
                raise DataError(
                    f"ppo.reward is checker, but prompt {completion.prompt.id} has no check. Give every prompt a `check`, or "
                    "score with ppo.reward: model."
                )
            passed = score(completion.prompt.check, completion.text, completion.is_finished)
            scores.append(2.0 * passed - 1.0 - REPETITION_PENALTY * repetition(completion.text))
        return torch.tensor(scores, dtype=torch.float32)
