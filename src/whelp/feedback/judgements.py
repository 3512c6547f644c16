"""What is judged, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from whelp.errors import DataError
from whelp.types import Message

LONGEST_COMMENT = 5_000
STRENGTHS = range(1, 5)


@dataclass(frozen=True, slots=True)
class NewItem:
    """A prompt and its completions, to be judged. `gold`: ranks that are known to be right."""

    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    category: str = ""
    gold: tuple[int, ...] | None = None
    priority: float | None = None
    """At least 0; the highest is asked first, and before all that have none."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An item as it lies in the database."""

    id: int
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    sources: tuple[str, ...]
    category: str
    gold: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Task:
    """An item before one person; the completions stand in the order that was drawn for them."""

    assignment: int
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    draft: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What somebody says about a task; `ranks` are those of its completions as they stand there."""

    kind: Literal["vote", "skip", "flag"]
    ranks: tuple[int, ...] | None = None
    strength: int | None = None
    is_both_bad: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Vote:
    """What counts of what somebody said about an item: ranks of its completions as they lie in the database."""

    item: int
    user: str
    ranks: tuple[int, ...]
    order: tuple[int, ...]
    """Which completion stood at each place."""
    strength: int | None
    is_both_bad: bool
    comment: str
    seconds: float
    created_at: float
    is_verdict: bool = False
    """True: an adjudicator's, which settles what others were at odds about."""


def dense(ranks: Sequence[int]) -> tuple[int, ...]:
    """1 is best, and no rank is left out: (2, 5, 2) is (1, 2, 1)."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return tuple(places[rank] for rank in ranks)


def in_database(ranks: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Ranks of completions as they stand before somebody, given to the completions as they lie in the database."""
    result = [0] * len(order)
    for rank, completion in zip(ranks, order, strict=True):
        result[completion] = rank
    return tuple(result)


def key_of(item: NewItem) -> str:
    """The same for the same prompt and completions, in whatever order these come."""
    prompt = [(m.role, m.content) for m in item.messages]
    return sha256(json.dumps([prompt, sorted(item.completions)]).encode()).hexdigest()


def refuse_bad(item: NewItem) -> None:
    count = len(item.completions)
    where = f"the prompt {item.messages[-1].content[:60]!r}" if item.messages else "an item without a prompt"
    if not item.messages or item.messages[-1].role != "user":
        raise DataError(f"{where}: expected a conversation that ends with the user's turn.")
    if count < 2:
        raise DataError(f"{where} has {count} completions; people compare at least two. Sample more.")
    if len(set(item.completions)) < count:
        raise DataError(f"{where} has the same completion twice; leave one out.")
    if item.sources and len(item.sources) != count:
        raise DataError(f"{where} has {count} completions and {len(item.sources)} sources; expected one for each.")
    if item.gold is not None and len(item.gold) != count:
        raise DataError(f"{where} has {count} completions and {len(item.gold)} gold ranks; expected one for each.")


def refuse_wrong(judgement: Judgement, count: int) -> None:
    """Raises `DataError` for what no page of ours would send."""
    ranks, is_vote = judgement.ranks, judgement.kind == "vote"
    if is_vote and (ranks is None or len(ranks) != count or not all(1 <= rank <= count for rank in ranks)):
        raise DataError(f"ranks: got {list(ranks or ())}; expected {count} numbers from 1, the best, to {count}.")
    if not is_vote and ranks is not None:
        raise DataError(f"a {judgement.kind} has no ranks; leave them out.")
    is_pair, is_tie = is_vote and count == 2, len(set(ranks or ())) == 1
    if judgement.strength is not None and (not is_pair or is_tie or judgement.strength not in STRENGTHS):
        raise DataError(f"strength: got {judgement.strength}; expected 1 to 4, where one of two completions is better.")
    if judgement.is_both_bad and not (is_pair and is_tie):
        raise DataError("both bad: expected two completions of equal rank.")
    if judgement.kind == "flag" and not judgement.comment.strip():
        raise DataError("a flag needs a reason; say in a few words what is wrong.")
    if len(judgement.comment) > LONGEST_COMMENT:
        raise DataError(f"a comment of {len(judgement.comment)} characters; at most {LONGEST_COMMENT} are kept.")
