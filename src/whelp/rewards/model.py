"""Score by a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine, Held
from whelp.text.chat import Chat, sequences
from whelp.types import Completion


@dataclass(frozen=True, slots=True)
class ModelReward:
    """One score from the members of the engine's model `name`, with the demonstrations at 0."""

    engine: Engine
    name: str
    shift: Float[Tensor, "M"]
    join: Callable[[Float[Tensor, "M B"]], Float[Tensor, "B"]]

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        return self.join(self.engine.rewards(self.name, held) - self.shift[:, None])


@dataclass(frozen=True, slots=True)
class TextReward:
    """As `ModelReward`, for a model with another tokenizer than the policy's: it reads the answers' text, rendered by its
    own chat template, in an engine of its own."""

    engine: Engine
    chat: Chat
    name: str
    shift: Float[Tensor, "M"]
    join: Callable[[Float[Tensor, "M B"]], Float[Tensor, "B"]]
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
        with self.engine.hold(sequences(rendered)) as own:
            return self.join(self.engine.rewards(self.name, own) - self.shift[:, None])
