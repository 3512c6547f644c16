"""How an endpoint's reply to a multiple choice is read: by the probability of its letter, or by the letter itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from whelp.endpoints.replies import NoLogprobs, Request, Unread, content_of, whole_text
from whelp.judges.asking import LETTERS

ROUNDING = 1e-3
LONGEST_LINE = 80
LETTER = re.compile(r"[\W_]*(?:(?:the |my )?(?:final )?(?:answer|letter|choice)(?: is)?)?[\W_Ġ]*([AB])[\W_]*", re.I)


def read(payload: Any, request: Request, is_thoughtful: bool) -> dict[str, Any]:
    """Of a reply: its text, the probability of A (of a vote 0 or 1) and the tokens by which it was found."""
    text, is_cut, chosen = content_of(payload)
    if request["logprobs"]:
        top = _likeliest(chosen)
        return {"text": text, "first": probability(top), "top": top}
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    letter = letter_of(lines[-1 if is_thoughtful else 0])
    if letter is None or (is_thoughtful and is_cut):
        raise Unread("the reply names no letter")
    return {"text": text, "first": float(letter == LETTERS[0])}


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
