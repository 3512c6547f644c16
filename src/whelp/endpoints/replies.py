"""What endpoints said: how it is read, and kept in the database in which people's judgements lie."""

from __future__ import annotations

import hashlib
import json
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

Request = Mapping[str, Any]
"""All that decides what is answered, in words of our own: its hash is the key of the reply."""
MOST_KEYS = 500
"""In one query: SQLite takes no more than 999 values."""


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


def content_of(payload: Any) -> tuple[str, bool, Mapping[str, Any]]:
    """Of a reply in either protocol: its text, whether it was cut off at the limit, and OpenAI's choice that holds it."""
    match payload:
        case {"choices": [{"message": {"content": str(text)}} as chosen, *_]}:
            return whole_text(text), chosen.get("finish_reason") == "length", chosen
        case {"content": [*blocks]} if texts := [b["text"] for b in blocks if _is_text(b)]:
            return whole_text("".join(texts)), payload.get("stop_reason") == "max_tokens", {}
        case _:
            raise Unread("the reply holds no text")


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
