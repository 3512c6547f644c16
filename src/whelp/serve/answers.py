"""What a model says to one request: tokens become text, which ends at a stop sequence."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from whelp.engines.base import SamplingParams
from whelp.text.chat import REPLACEMENT, Chat
from whelp.types import Prompt

Finish = Literal["stop", "length"]


class Model(Protocol):
    """What answers; see `whelp.conversation.Speaker`."""

    @property
    def chat(self) -> Chat: ...

    @property
    def context(self) -> int | None:
        """The longest conversation in tokens, its answer included; None where that is not known."""
        ...

    def tokens(self, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        """(sample, token) of `params.n` answers, as they are drawn."""
        ...


@dataclass(slots=True)
class Answer:
    """One answer in the making. No part of a stop sequence ever stands in its text: what may yet become one waits."""

    chat: Chat
    end_ids: frozenset[int]
    max_new_tokens: int
    stops: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    """Why it ended; None while it goes on."""

    def add(self, token: int) -> str:
        """What one more token adds to the text."""
        self.tokens.append(token)
        text = self.chat.decode(self.tokens)
        end = end_of(text, self.stops)
        if end is not None:
            text, self.finish = text[:end], "stop"
        elif token in self.end_ids:
            self.finish = "stop"
        elif len(self.tokens) == self.max_new_tokens:
            self.finish = "length"
        elif text.endswith(REPLACEMENT):  # of a character some bytes are still to come
            return ""
        else:
            text = text[: len(text) - begun(text, self.stops)]
        added, self.text = text[len(self.text) :], text
        return added


def end_of(text: str, stops: Sequence[str]) -> int | None:
    """Where a text ends whose first complete stop sequence is cut off; None where there is none. It does not depend on the pieces
    in which the text came."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def begun(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop sequence."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


def speak(
    model: Model, prompt: Prompt, params: SamplingParams, answers: Sequence[Answer]
) -> Generator[str, None, None]:
    """What each token adds to its answer, until all have ended."""
    for sample, token in model.tokens(prompt, params):
        if answers[sample].finish is None:
            yield answers[sample].add(token)
            if all(answer.finish for answer in answers):
                return
