"""What the tests of the database of judgements share."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from whelp.feedback.judgements import Judgement, NewItem, Task
from whelp.feedback.store import Store
from whelp.types import Message

Open = Callable[..., Store]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def items(count: int, completions: int = 2, **more: object) -> list[NewItem]:
    return [
        NewItem((Message("user", f"question {i}"),), tuple(f"answer {i}.{k}" for k in range(completions)), **more)
        for i in range(count)
    ]


def new_request() -> str:
    return uuid.uuid4().hex


def vote(store: Store, user: int, task: Task, favourite: str | None = None) -> None:
    """For one completion over the others, by default the one that stands first."""
    best = task.completions.index(favourite) if favourite else 0
    ranks = tuple(1 if place == best else 2 for place in range(len(task.completions)))
    store.submit(user, task.assignment, Judgement("vote", ranks), new_request())


def asked(task: Task | None) -> str:
    assert task is not None
    return task.messages[-1].content
