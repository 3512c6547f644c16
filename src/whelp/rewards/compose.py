"""Rewards by Python functions, and weighted sums of rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine, Held, SamplingParams
from whelp.errors import DataError
from whelp.maths.shaping import preference
from whelp.rewards.base import Reward
from whelp.text.chat import Chat, sampled
from whelp.types import Completion

Scorer = Callable[[Sequence[Completion]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """The sum of `weight * reward` over its parts."""

    parts: Sequence[tuple[float, Reward]]

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        return torch.stack([weight * reward(completions, held) for weight, reward in self.parts]).sum(0)


@dataclass(frozen=True, slots=True)
class AgainstReference:
    """`preference` of an answer over one that the engine's model "reference" gives to the same prompt: the same answer every
    time that the prompt comes up."""

    reward: Reward
    gain: float
    engine: Engine
    chat: Chat
    params: SamplingParams

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        prompts = {c.prompt.id: c.prompt for c in completions}
        references = list(self.engine.sample("reference", list(prompts.values()), self.params))
        with self.engine.hold(sampled(self.chat, references)) as own:
            scores = self.reward(references, own)
        to_beat = {c.prompt.id: score for c, score in zip(references, scores, strict=True)}
        ahead = self.reward(completions, held) - torch.stack([to_beat[c.prompt.id] for c in completions])
        return preference(ahead, self.gain)


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A function of the user's: it takes the completions and returns a number for each, in their order.

    Raises `DataError` when the function fails, or returns something else.
    """

    name: str
    function: Scorer

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        try:
            scores = torch.as_tensor(self.function(completions), dtype=torch.float32).cpu()
        except Exception as error:
            raise DataError(f"the reward {self.name} failed: {type(error).__name__}: {error}") from error
        if scores.shape != (len(completions),):
            raise DataError(
                f"the reward {self.name} returned a shape of {tuple(scores.shape)} for {len(completions)} completions; "
                "expected one number for each."
            )
        if wrong := [i for i, good in enumerate(scores.isfinite().tolist()) if not good]:
            raise DataError(
                f"the reward {self.name} returned {float(scores[wrong[0]])} for {completions[wrong[0]].text[:80]!r} "
                f"({len(wrong)} of {len(scores)} are not finite); expected a finite number for each."
            )
        return scores


def run_file(file: str, what: str) -> ModuleType:
    """A Python file of the user's, run; `what` it is for stands in the message. Raises `DataError` where it cannot be run."""
    module = ModuleType(Path(file).stem)
    module.__file__ = file
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    except Exception as error:
        raise DataError(f"{what}: {file} cannot be run: {type(error).__name__}: {error}") from error
    return module


def load_function(name: str) -> FunctionReward:
    """FILE.py:FUNCTION; runs the file. Raises `DataError` where it cannot be run or has no such function."""
    file, _, function = name.rpartition(":")
    found = getattr(run_file(file, f"the reward {name}"), function, None)
    if not callable(found):
        raise DataError(f"the reward {name}: {file} has no function {function}.")
    return FunctionReward(name, cast(Scorer, found))
