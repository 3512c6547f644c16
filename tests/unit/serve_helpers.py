"""What the tests of the endpoint share: models that say what they are told, and a server in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import uvicorn

from whelp.engines.base import SamplingParams
from whelp.serve.app import create_app
from whelp.serve.service import Service
from whelp.text.chat import Chat
from whelp.types import Prompt


class Parrot:
    """Says the texts that it was given, one to each of the answers, a token of each in turn."""

    def __init__(self, chat: Chat, *texts: str, context: int | None = None):
        self.chat, self.texts, self.context = chat, texts, context
        self.asked: list[tuple[Prompt, SamplingParams]] = []

    def tokens(self, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        self.asked.append((prompt, params))
        tokenizer = self.chat.tokenizer
        said = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in self.texts]
        for step in zip_longest(*(tokens[: params.max_new_tokens] for tokens in said[: params.n])):
            yield from ((sample, token) for sample, token in enumerate(step) if token is not None)


class Endless:
    """Says "a" without end, each time when it `may`; `closed` is set when nobody listens any more."""

    def __init__(self, chat: Chat):
        self.chat, self.context = chat, None
        self.may, self.is_asked, self.closed = threading.Semaphore(0), threading.Event(), threading.Event()

    def tokens(self, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        self.is_asked.set()
        (token,) = self.chat.tokenizer.encode("a", add_special_tokens=False)
        try:
            while True:
                self.may.acquire(timeout=10)
                yield 0, token
        finally:
            self.closed.set()


class Broken(Parrot):
    """Says half of a word."""

    def tokens(self, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        yield next(super().tokens(prompt, params))
        raise RuntimeError("out of memory")


@contextmanager
def serving(service: Service, **options: object) -> Iterator[tuple[str, uvicorn.Server]]:
    """(its address, the server), listening on a free port in a thread."""
    server = uvicorn.Server(uvicorn.Config(create_app(service, **options), log_level="critical"))
    service.is_ending = lambda: server.should_exit
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
