"""What endpoints said: how it is read, and kept in the database in which people's judgements lie."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from whelp.feedback.database import open_database
from whelp.feedback.queue import storable
from whelp.feedback.schema import Reply
from whelp.judges.asking import LETTERS

Request = Mapping[str, Any]
"""All that decides what is answered, in words of our own: its hash is the key of the reply."""
MOST_KEYS = 500
"""In one query: SQLite takes no more than 999 values."""
ROUNDING = 1e-3
LONGEST_LINE = 80
LETTER = re.compile(r"[\W_]*(?:(?:the |my )?(?:final )?(?:answer|letter|choice)(?: is)?)?[\W_Ġ]*([AB])[\W_]*", re.I)


class Unread(Exception):
    """A request without a reply that can be read."""

    def __init__(self, reason: str, after: float = 0.0, is_free: bool = False, is_final: bool = False):
        super().__init__(reason)
        self.after, self.is_free, self.is_final = after, is_free, is_final


class NoLogprobs(Exception):
    """The endpoint refuses to give log-probabilities, or gives none."""

    def __init__(self, is_free: bool):
        super().__init__()
        self.is_free = is_free


@dataclass(frozen=True, slots=True)
class Kept:
    """What was read of a reply, and what it took."""

    reply: Mapping[str, Any]
    tokens_in: int
    tokens_out: int
    cost: float


def key_of(request: Request) -> str:
    """The same for requests that say the same."""
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Replies:
    """By the key of their request. Works from many threads and processes; each call is one short transaction.

    Raises `ConfigError` where the database cannot be opened.
    """

    def __init__(self, database: str | Path):
        self.engine = open_database(str(database))
        self.writer = self.engine.execution_options(writes=True)
        is_sqlite = self.engine.dialect.name == "sqlite"
        self.insert = (sqlite if is_sqlite else postgresql).insert
        # Threads that wait for SQLite's own sleeps wait up to a tenth of a second at a time.
        self.turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else nullcontext()

    def close(self) -> None:
        self.engine.dispose()

    def get(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Those of `keys` that were answered."""
        columns = (Reply.key, Reply.reply, Reply.tokens_in, Reply.tokens_out, Reply.cost)
        parts = [keys[start : start + MOST_KEYS] for start in range(0, len(keys), MOST_KEYS)]
        with self.engine.connect() as connection:
            rows = [row for part in parts for row in connection.execute(select(*columns).where(Reply.key.in_(part)))]
        return {key: Kept(reply, read, written, cost) for key, reply, read, written, cost in rows}

    def put(self, request: Request, kept: Kept) -> Kept:
        """What is kept of the request from now on: what whoever came first has heard."""
        row = {
            "key": (key := key_of(request)),
            "model": request["model"],
            "request": dict(request),
            "reply": dict(kept.reply),
            "tokens_in": kept.tokens_in,
            "tokens_out": kept.tokens_out,
            "cost": kept.cost,
            "created_at": time.time(),
        }
        with self.turn, self.writer.begin() as connection:
            connection.execute(self.insert(Reply).values(row).on_conflict_do_nothing(index_elements=["key"]))
        return self.get([key])[key]


# -- how it is read ---------------------------------------------------------------------------------------------------


def whole_text(text: str) -> str:
    """What a database keeps, without halves of characters, which are no UTF-8."""
    return storable(text).encode("utf-8", "ignore").decode()


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unread("the reply is no JSON") from error


def usage(payload: Any, most_in: int, most_out: int) -> tuple[int, int]:
    """Tokens read and written; where the endpoint says nothing that can be believed, the most that they can be."""
    said = payload.get("usage") if isinstance(payload, dict) else None
    said = said if isinstance(said, dict) else {}

    def count(names: tuple[str, str], most: int) -> int:
        value = next((said[name] for name in names if name in said), None)
        return value if type(value) is int and 0 <= value < 10**9 else most

    return count(("prompt_tokens", "input_tokens"), most_in), count(("completion_tokens", "output_tokens"), most_out)


def read(payload: Any, request: Request, is_thoughtful: bool) -> dict[str, Any]:
    """Of a reply in either protocol: its text, the probability of A (of a vote 0 or 1) and the tokens by which it was found."""
    match payload:
        case {"choices": [{"message": {"content": str(text)}} as chosen, *_]}:
            is_cut = chosen.get("finish_reason") == "length"
        case {"content": [*blocks]} if texts := [b["text"] for b in blocks if _is_text(b)]:
            text, is_cut, chosen = "".join(texts), payload.get("stop_reason") == "max_tokens", {}
        case _:
            raise Unread("the reply holds no text")
    text = whole_text(text)
    if request["logprobs"]:
        top = _likeliest(chosen)
        return {"text": text, "first": probability(top), "top": top}
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    letter = letter_of(lines[-1 if is_thoughtful else 0])
    if letter is None or (is_thoughtful and is_cut):
        raise Unread("the reply names no letter")
    return {"text": text, "first": float(letter == LETTERS[0])}


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _likeliest(chosen: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the first token could have been, with log-probabilities. Raises `NoLogprobs` where there are none."""
    match chosen.get("logprobs"):
        case {"content": [{"top_logprobs": [_, *_] as top}, *_]}:
            return [_listed(one) for one in top]
        case None | {"content": None | [] | [{"top_logprobs": None | []}, *_]}:
            raise NoLogprobs(is_free=False)
        case {"content": [{"token": str()} as first, *_]} if "top_logprobs" not in first:
            raise NoLogprobs(is_free=False)
        case _:
            raise Unread("the log-probabilities are of no known form")


def _listed(one: Any) -> tuple[str, float]:
    match one:
        case {"token": str(token), "logprob": float() | int() as value} if -1e6 < value <= ROUNDING:
            return whole_text(token), float(value)
        case _:
            raise Unread("a log-probability is no number up to 0")


def probability(top: Sequence[tuple[str, float]]) -> float:
    """Of A against B, each in all its spellings; a letter that is not among the likeliest has none."""
    if math.fsum(math.exp(value) for _, value in top) > 1 + ROUNDING * len(top):
        raise Unread("the probabilities sum to more than 1")
    found = [(letter, value) for token, value in top if (letter := letter_of(token)) is not None]
    if not found:
        raise Unread("neither letter is among the likeliest tokens")
    highest = max(value for _, value in found)
    first, second = (math.fsum(math.exp(v - highest) for letter, v in found if letter == one) for one in LETTERS)
    return first / (first + second)


def letter_of(line: str) -> str | None:
    found = LETTER.fullmatch(line.strip()) if len(line) <= LONGEST_LINE else None
    return found[1].upper() if found else None
