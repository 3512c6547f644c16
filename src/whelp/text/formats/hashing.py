"""Hashes of what was asked: ids, overlap checks, splits that keep a prompt on one side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from whelp.types import Message

T = TypeVar("T")


def content_id(messages: Sequence[Message]) -> str:
    """An id for a conversation that has none: 12 hexadecimal digits of the sha256 of its exact text."""
    return _sha256([[message.role, message.content] for message in messages])[:12]


def prompt_hash(messages: Sequence[Message]) -> str:
    """sha256 of the roles and texts, blind to case and to how whitespace is laid out."""
    return _sha256([[message.role, " ".join(message.content.casefold().split())] for message in messages])


def split_by_hash(
    records: Iterable[T], key: Callable[[T], Sequence[Message]], fraction: float, salt: str = ""
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Two parts, the first with about `fraction` of the prompts.

    A record's side depends on `salt` and the `prompt_hash` of `key(record)` alone: all records of one prompt stay
    together, and adding records moves no other. Raises ValueError where fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a number from 0 to 1")
    first: list[T] = []
    second: list[T] = []
    for record in records:
        position = int(_sha256([salt, prompt_hash(key(record))])[:16], 16) / 2**64
        (first if position < fraction else second).append(record)
    return tuple(first), tuple(second)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
