"""One thread in which models answer, one request after the other."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from whelp.engines.base import SamplingParams
from whelp.serve.answers import Answer, Model, speak
from whelp.serve.requests import ChatRequest, Refused
from whelp.text.chat import end_ids
from whelp.types import Message, Prompt

COLDEST = 1e-4
"""Lower temperatures are greedy: logits divided by them are no longer numbers."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that can be answered."""

    model: Model
    prompt: Prompt
    prompt_tokens: int
    params: SamplingParams
    answers: tuple[Answer, ...]


class Service:
    """`max_new_tokens`: of an answer whose request names no limit. `is_ending` is asked between two tokens."""

    def __init__(self, models: Mapping[str, Model], max_new_tokens: int):
        self.models = models
        self.max_new_tokens = max_new_tokens
        self.created = int(time.time())
        self.is_ending: Callable[[], bool] = lambda: False
        self.lock = asyncio.Lock()
        self.thread = ThreadPoolExecutor(1, "serve")

    def model(self, name: str) -> Model:
        """Raises `Refused` where there is none of that name."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise Refused(404, f"There is no model {name!r:.100}; there is {known}.", "model", "model_not_found")
        return self.models[name]

    async def prepare(self, request: ChatRequest) -> Job:
        """Raises `Refused` where there is no such model or no room for an answer, and `DataError` where the model's chat template
        refuses the conversation."""
        return await self._run(self._job, self.model(request.model), request)

    def _job(self, model: Model, request: ChatRequest) -> Job:
        messages = [Message("system" if t.role == "developer" else t.role, t.content) for t in request.messages]
        prompt = Prompt("chat", tuple(messages))
        prompt_tokens = len(model.chat.prompt(prompt))
        room = self._room(model, prompt_tokens, request.limit)
        temperature = 1.0 if request.temperature is None else request.temperature
        seed = secrets.token_hex() if request.seed is None else request.seed
        n = request.n or 1
        params = SamplingParams(n, temperature if temperature >= COLDEST else 0.0, room, ("serve", seed))
        ends = frozenset(end_ids(model.chat.tokenizer))
        answers = tuple(Answer(model.chat, ends, room, request.stop) for _ in range(n))
        return Job(model, prompt, prompt_tokens, params, answers)

    def _room(self, model: Model, prompt_tokens: int, asked: int | None) -> int:
        """Longest answer in tokens: the one asked for, else the usual one as far as the context holds it."""
        left = self.max_new_tokens if model.context is None else model.context - prompt_tokens
        held = f"The conversation has {prompt_tokens} tokens"
        if left < 1:
            said = f"{held} and the model's context {model.context}, so there is no room for an answer; shorten it."
            raise Refused(400, said, "messages", "context_length_exceeded")
        if asked is not None and asked > left:
            said = f"{held}, behind which there is room for an answer of {left}; max_tokens asks for {asked}."
            raise Refused(400, said, "max_tokens", "context_length_exceeded")
        return asked or min(left, self.max_new_tokens)

    async def pieces(self, job: Job) -> AsyncGenerator[str, None]:
        """What each token adds to its answer. Who stops listening stops the model, and the next request has its turn."""
        async with self.lock:
            speech = speak(job.model, job.prompt, job.params, job.answers)
            try:
                while not self.is_ending():
                    piece = await self._run(next, speech, None)
                    if piece is None:
                        return
                    yield piece
                raise Refused(503, "The server is being stopped.")
            finally:
                # In the thread, behind the token that it may still be at.
                self.thread.submit(speech.close)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)
