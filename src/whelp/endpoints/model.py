"""A model behind an address that answers prompts, as an engine's models do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from whelp.endpoints.client import Endpoint, Line
from whelp.endpoints.replies import Kept, Request, Unread, content_of
from whelp.engines.base import SamplingParams
from whelp.errors import ModelError
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt

_SHOWN = 5


class EndpointModel:
    """Samples from one endpoint. `chat` gives the system text, and the tokens in which an answer's length is counted; what the
    tokens' log-probabilities were is not known, so they are NaN."""

    def __init__(self, endpoint: Endpoint, chat: Chat):
        self.endpoint, self.chat = endpoint, chat

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        """`params.n` answers to every prompt, in the order in which they come; `model` is what the endpoint is called here.

        Raises as `Endpoint.each` does, and `ModelError` where some were not answered: behind all the others, which are kept.
        """
        asked = [(prompt, sample) for prompt in prompts for sample in range(params.n)]
        requests = [self._request(prompt, sample, params) for prompt, sample in asked]

        def known(place: int) -> Kept | None:
            found = self.endpoint.kept([requests[place]])
            return found[0] if found else None

        def ask(line: Line, place: int) -> Kept:
            return line.answer(requests[place], _read)

        silent = []
        for place, kept in self.endpoint.each(len(asked), known, ask):
            prompt, sample = asked[place]
            if kept is None:
                silent.append(prompt.id)
            else:
                yield self._completion(prompt, sample, kept)
        if silent:
            shown = ", ".join(sorted(set(silent))[:_SHOWN])
            raise ModelError(
                f"{model}: {self.endpoint.name} gave {len(silent)} of {len(asked)} answers in no form that can be read (to "
                f"{shown}). Run the same again, which asks for these alone, or take the prompts out that it will not answer."
            )

    def _request(self, prompt: Prompt, sample: int, params: SamplingParams) -> Request:
        draw = "/".join(map(str, (*params.key, sample)))
        messages = self.chat.with_system(prompt.messages)
        return self.endpoint.request(messages, params.max_new_tokens, params.temperature, False, draw)

    def _completion(self, prompt: Prompt, sample: int, kept: Kept) -> Completion:
        text, is_finished = kept.reply["text"], kept.reply["is_finished"]
        tokens = self.chat.answer_tokens(prompt, text, is_finished)
        return Completion(prompt, text, tokens, (math.nan,) * len(tokens), is_finished, sample)


def _read(payload: Any, request: Request) -> dict[str, Any]:
    text, is_cut, _ = content_of(payload)
    if is_cut and not text.strip():
        raise Unread("the limit was reached before an answer began")
    return {"text": text.strip(), "is_finished": not is_cut}
