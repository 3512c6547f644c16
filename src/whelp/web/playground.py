"""Models of a run answer side by side, and which answer was better is kept as a preference."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from whelp.errors import ConfigError, DataError
from whelp.feedback.accounts import SignedIn
from whelp.feedback.judgements import Judgement, NewItem
from whelp.feedback.store import Store
from whelp.types import Message
from whelp.web.pages import Id, page, store_of
from whelp.web.security import at_least

PROJECT = "playground"
LONGEST_TURN, MOST_TURNS = 20_000, 40
routes = APIRouter(prefix="/playground")
Annotator = Annotated[SignedIn, Depends(at_least("annotator"))]


class Answering(Protocol):
    """Several models that answer the same."""

    def refuse_long(self, messages: Sequence[Message]) -> None: ...

    def answers(
        self, messages: Sequence[Message], names: Sequence[str], key: Sequence[int | str]
    ) -> Iterator[tuple[str, str]]: ...


class Playground:
    """Where the models of a panel speak: one conversation at a time, in a thread of its own."""

    def __init__(self, panel: Answering, names: Sequence[str]):
        self.panel = panel
        self.names = list(names)
        self.thread = ThreadPoolExecutor(1, "playground")

    def answers(self, messages: Sequence[Message], names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """(name, piece of its answer) as they come; who stops listening stops the models."""
        heard: SimpleQueue[tuple[str, str] | BaseException | None] = SimpleQueue()
        is_left = Event()

        def speak() -> None:
            try:
                for said in self.panel.answers(messages, names, (uuid.uuid4().hex,)):
                    if is_left.is_set():
                        break
                    heard.put(said)
                heard.put(None)
            except BaseException as error:
                heard.put(error)

        self.thread.submit(speak)
        try:
            while (said := heard.get()) is not None:
                if isinstance(said, BaseException):
                    raise said
                yield said
        finally:
            is_left.set()


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=LONGEST_TURN)


class Question(BaseModel):
    messages: list[Turn] = Field(min_length=1, max_length=MOST_TURNS)
    is_blind: bool = False


class Choice(BaseModel):
    """`best`: the place of the better answer in the task; None: they are as good, or as bad, as each other."""

    best: int | None = Field(None, ge=0, le=10)
    is_bad: bool = False
    key: str = Field(min_length=8, max_length=64)


@routes.get("")
def see(request: Request, user: Annotator) -> Response:
    return page(request, "playground.html", user=user, names=models_of(request).names)


@routes.post("/ask")
def ask(request: Request, user: Annotator, question: Question) -> StreamingResponse:
    """A line of JSON for each piece: `{"place", "text"}`; the last one is what `keep` says."""
    models, store = models_of(request), store_of(request)
    messages = [Message(turn.role, turn.content) for turn in question.messages]
    if messages[-1].role != "user":
        raise DataError("a question ends with the user's turn; write something.")
    models.panel.refuse_long(messages)
    names = list(models.names)
    if question.is_blind:
        random.SystemRandom().shuffle(names)

    def lines() -> Iterator[str]:
        said = dict.fromkeys(names, "")
        for name, piece in models.answers(messages, names):
            said[name] += piece
            yield json.dumps({"place": names.index(name), "text": piece}) + "\n"
        yield json.dumps(keep(store, user, messages, said) | ({} if question.is_blind else {"names": names})) + "\n"

    return StreamingResponse(lines(), media_type="application/jsonl")


@routes.post("/tasks/{task}/vote")
def vote(request: Request, task: Id, user: Annotator, choice: Choice) -> dict[str, Any]:
    """Who said what, once the vote is in: `sources` of the task's completions."""
    store = store_of(request)
    sources = store.sources(store.project(PROJECT), user.user, task)
    if choice.best is not None and choice.best >= len(sources):
        raise DataError(f"best: got {choice.best}; there are {len(sources)} answers.")
    ranks = tuple(1 if choice.best in (None, place) else 2 for place in range(len(sources)))
    is_both_bad = choice.is_bad and choice.best is None and len(sources) == 2
    store.submit(user.user, task, Judgement("vote", ranks, None, is_both_bad), choice.key)
    return {"sources": sources}


def keep(store: Store, user: SignedIn, messages: Sequence[Message], said: Mapping[str, str]) -> dict[str, Any]:
    """`task`, to be voted on, and `of`: which of its completions stands at each place of the page; None where all said the
    same, and there is nothing to vote on. Models that said the same share a completion."""
    texts = [text.strip() for text in said.values()]
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 2 or not all(distinct):
        return {"task": None}
    sources = [", ".join(name for name, text in said.items() if text.strip() == one) for one in distinct]
    project = store.projects().get(PROJECT) or store.add_project(PROJECT)
    task = store.put_before(project, user.user, NewItem(tuple(messages), tuple(distinct), tuple(sources)))
    return {"task": task, "of": [distinct.index(text) for text in texts]}


def models_of(request: Request) -> Playground:
    """Raises `ConfigError` where the server has no models."""
    if request.app.state.models is None:
        raise ConfigError("this server has no models to talk with; start it by `whelp playground`.")
    return request.app.state.models
