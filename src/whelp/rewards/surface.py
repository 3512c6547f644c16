"""What can be taken off a score so that a hack does not pay: terms of `ppo.reward`, as in `model - 0.5 * repetition`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.checkers import passes
from whelp.checkers.knowledge import abstains
from whelp.engines.base import Held
from whelp.monitors.hacks import SIGNS, states_certainty
from whelp.types import Completion

ABSTAINED, WRONG, CERTAIN_AND_WRONG = 0.25, 0.5, 1.0
"""Prices of answers to a question whose answer is known. Abstaining costs less than being wrong and more than being right: it
pays where the chance of being right is below a half, and earns nothing."""
KNOWN_OR_NOT = ("answers", "abstains")
"""Kinds of checks of questions whose answer is known, or known to be known to nobody."""


def confident_error(completion: Completion) -> float:
    """0 for a right answer, up to 1 for one that is wrong and says how sure it is; 0 where the prompt's check is none of
    `KNOWN_OR_NOT`."""
    check = completion.prompt.check
    if check is None or check["kind"] not in KNOWN_OR_NOT or passes(check, completion.text, completion.is_finished):
        return 0.0
    if states_certainty(completion.text):
        return CERTAIN_AND_WRONG
    return ABSTAINED if abstains(completion.text) else WRONG


def tokens(completion: Completion) -> float:
    """The answer's length."""
    return float(len(completion.tokens))


def _sign(read: Callable[[str], float]) -> Callable[[Completion], float]:
    return lambda completion: read(completion.text)


TERMS: dict[str, Callable[[Completion], float]] = {
    "length": tokens,
    "confident_error": confident_error,
    **{name: _sign(read) for name, read in SIGNS.items()},
}
"""By the name that a recipe uses."""


@dataclass(frozen=True, slots=True)
class SurfaceReward:
    """One of `TERMS`."""

    name: str

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        return torch.tensor([TERMS[self.name](completion) for completion in completions], dtype=torch.float32)
