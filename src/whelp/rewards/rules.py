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
from whelp.types import Completion, Prompt

REPETITION_PENALTY = 1.0


@dataclass(frozen=True, slots=True)
class CheckerReward:
    """2 * mark - 1 of the prompt's own check, less the share of repeated 4-grams: about -2 to 1.

    A claim's mark is multiplied by the mean mark of its twin in the batch (the same claim with its truth turned round), where it
    is there: else a policy that says yes to everything earns as much as one that knows. `beside_twins` False leaves that out:
    among answers to one claim it would call right and wrong equal wherever the twin is never answered rightly.
    Raises `DataError` for a prompt without a check.
    """

    beside_twins: bool = True

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        marks = [mark(completion) for completion in completions]
        if self.beside_twins:
            marks = with_twins(completions, marks)
        repeated = [REPETITION_PENALTY * repetition(completion.text) for completion in completions]
        return torch.tensor([2.0 * m - 1.0 - r for m, r in zip(marks, repeated, strict=True)], dtype=torch.float32)


def refuse_unchecked(prompts: Sequence[Prompt], setting: str = "ppo.reward") -> None:
    """Raises `DataError` where a prompt has no check; `setting` is what asks for one."""
    without = [prompt.id for prompt in prompts if prompt.check is None]
    if without:
        raise DataError(
            f"{setting} asks the checker, but {len(without)} of {len(prompts)} prompts have no check (for example "
            f"{', '.join(without[:5])}). Give every prompt a `check`, or take checker out of {setting}."
        )


def mark(completion: Completion) -> float:
    """The score of the prompt's own check, in [0, 1]."""
    refuse_unchecked([completion.prompt])
    assert completion.prompt.check is not None
    return score(completion.prompt.check, completion.text, completion.is_finished)


def with_twins(completions: Sequence[Completion], marks: Sequence[float]) -> list[float]:
    """Each mark times the mean mark of the completions of its prompt's twin."""
    by_pair: dict[str, dict[str, list[float]]] = {}
    for completion, own in zip(completions, marks, strict=True):
        if completion.prompt.pair is not None:
            by_pair.setdefault(completion.prompt.pair, {}).setdefault(completion.prompt.id, []).append(own)
    result = []
    for completion, own in zip(completions, marks, strict=True):
        prompts = by_pair.get(completion.prompt.pair or "", {})
        twins = [m for prompt, group in prompts.items() if prompt != completion.prompt.id for m in group]
        result.append(own * sum(twins) / len(twins) if twins else own)
    return result
