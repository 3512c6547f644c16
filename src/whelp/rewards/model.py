"""Score by a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine, Held
from whelp.maths.shaping import Aggregation, aggregate
from whelp.text.chat import Chat, sequences
from whelp.types import Completion


@dataclass(frozen=True, slots=True)
class ModelReward:
    """One score from the members of the engine's model `name`, with the demonstrations at 0."""

    engine: Engine
    name: str
    shift: Float[Tensor, "M"]
    how: Aggregation = "mean"
    uncertainty_coef: float = 0.0
    length_slope: float = 0.0
    """What a word earns as such, which is taken off; 0: nothing is."""

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        rewards = self.engine.rewards(self.name, held) - self.shift[:, None]
        if self.length_slope:
            rewards = rewards - self.length_slope * torch.tensor([float(len(c.text.split())) for c in completions])
        if self.how != "uncertainty":
            return aggregate(rewards, self.how)
        return aggregate(rewards, self.how, self.uncertainty_coef, self.engine.reward_variance(self.name, held))


@dataclass(frozen=True, slots=True)
class TextReward:
    """By a model with another tokenizer than the policy's: it reads the answers' text, rendered by its own chat template, in an
    engine of its own."""

    model: ModelReward
    chat: Chat
    as_sampled: bool = True
    """True: an answer that was cut off has no end of turn, as its sampled tokens have none. False: all are read as ranked answers
    are."""

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        rendered = [
            self.chat.answer(c.prompt, c.text, c.is_finished)
            if self.as_sampled
            else self.chat.answer(c.prompt, c.text.strip())
            for c in completions
        ]
        with self.model.engine.hold(sequences(rendered)) as own:
            return self.model(completions, own)
