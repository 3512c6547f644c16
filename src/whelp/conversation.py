"""Talking with models: one that remembers, or several that answer the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from whelp.engines.base import ModelSpec, SamplingParams
from whelp.engines.local import LocalEngine
from whelp.errors import DataError
from whelp.models.loading import context_of, load_tokenizer
from whelp.models.sources import resolve
from whelp.preflight import refuse_long
from whelp.text.chat import Chat
from whelp.types import Completion, Message, Prompt

CHATTING = SamplingParams(temperature=0.7, max_new_tokens=256, key=("chat", 0))


class Speaker:
    """A model that answers."""

    def __init__(self, model: str, params: SamplingParams = CHATTING, system_prompt: str | None = None):
        self.folder = resolve(model)
        self.engine = LocalEngine(Chat(load_tokenizer(self.folder), system_prompt))
        self.engine.add("model", ModelSpec(source=self.folder, trainable_layers="all"))
        self.params = params
        self.context = context_of(self.folder)
        """The longest conversation in tokens, its answer included; None where the model does not say."""

    def sample(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """`params.n` answers to each prompt, as they finish. Raises `DataError` where some leave no room for one."""
        refuse_long(self.engine.chat, self.folder, prompts, self.params.max_new_tokens)
        yield from self.engine.sample("model", prompts, self.params)

    def refuse_long(self, messages: Sequence[Message]) -> None:
        """Raises `DataError` where the conversation leaves no room for an answer."""
        refuse_long(self.engine.chat, self.folder, [_prompt(messages)], self.params.max_new_tokens)

    def answer(self, messages: Sequence[Message], key: Sequence[int | str] = ()) -> Iterator[str]:
        """The next turn, in pieces. `key`: another one draws another answer."""
        params = replace(self.params, key=(*self.params.key, *key))
        return self.engine.stream("model", _prompt(messages), params)

    @property
    def chat(self) -> Chat:
        return self.engine.chat

    def tokens(self, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        """(sample, token) of `params.n` answers, as they are drawn."""
        return self.engine.tokens("model", prompt, params)


class ChatSession:
    """A conversation with one model."""

    def __init__(self, model: str, params: SamplingParams = CHATTING, system_prompt: str | None = None):
        self.speaker = Speaker(model, params, system_prompt)
        self.messages: list[Message] = []

    def reply(self, text: str) -> Iterator[str]:
        """The model's next turn, in pieces; both turns are remembered, and the oldest forgotten where the context is full.

        Raises `DataError` where `text` alone leaves no room for an answer.
        """
        self.messages.append(Message("user", text))
        self._forget()
        said = ""
        for piece in self.speaker.answer(self.messages):
            said += piece
            yield piece
        self.messages.append(Message("assistant", said))

    def _forget(self) -> None:
        """The oldest turns, where they leave no room for an answer."""
        while True:
            try:
                return self.speaker.refuse_long(self.messages)
            except DataError:
                if len(self.messages) == 1:
                    self.messages.clear()
                    raise
                del self.messages[:2]


class SideBySide:
    """Conversations with several models, who hear the same and each remember what they said themselves."""

    def __init__(self, models: Mapping[str, str], params: SamplingParams = CHATTING, system_prompt: str | None = None):
        self.sessions = {name: ChatSession(model, params, system_prompt) for name, model in models.items()}

    def reply(self, text: str) -> Iterator[tuple[str, str]]:
        """(name, piece of its next turn). Raises as `ChatSession.reply` does."""
        return in_turns({name: session.reply(text) for name, session in self.sessions.items()})


class Panel:
    """Several models that answer the same."""

    def __init__(self, models: Mapping[str, str], params: SamplingParams = CHATTING):
        self.speakers = {name: Speaker(model, params) for name, model in models.items()}

    def refuse_long(self, messages: Sequence[Message]) -> None:
        """Raises `DataError` where the conversation leaves one of them no room for an answer."""
        for speaker in self.speakers.values():
            speaker.refuse_long(messages)

    def answers(
        self, messages: Sequence[Message], names: Sequence[str], key: Sequence[int | str]
    ) -> Iterator[tuple[str, str]]:
        """(name, piece of its answer)."""
        return in_turns({name: self.speakers[name].answer(messages, key) for name in names})


def in_turns(answers: Mapping[str, Iterator[str]]) -> Iterator[tuple[str, str]]:
    """(name, piece of its answer), taking turns until all have ended."""
    speaking = dict(answers)
    while speaking:
        for name, answer in list(speaking.items()):
            piece = next(answer, None)
            if piece is None:
                del speaking[name]
            else:
                yield name, piece


def _prompt(messages: Sequence[Message]) -> Prompt:
    return Prompt(f"turn-{len(messages)}", tuple(messages))
