"""A policy that is a table of logits, one row for each prefix: small enough that all its answers can be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

VOCABULARY, LONGEST, END = 4, 3, 0

Answer = tuple[int, ...]


def answers(prefix: Answer = ()) -> list[Answer]:
    """Every answer: it ends with END or at three tokens."""
    if len(prefix) == LONGEST or (prefix and prefix[-1] == END):
        return [prefix]
    return [answer for token in range(VOCABULARY) for answer in answers((*prefix, token))]


ANSWERS = answers()
PREFIXES = sorted({answer[:t] for answer in ANSWERS for t in range(len(answer))})


def is_response(rows: Sequence[Answer]) -> Tensor:
    """True where an answer has a token [B R]."""
    return torch.tensor([[t < len(row) for t in range(LONGEST)] for row in rows])


def token_logprobs(logits: Tensor, rows: Sequence[Answer] = ANSWERS, behind_the_end: float = 0.0) -> Tensor:
    """log pi(y_t | y_<t) [B R]. Behind an answer's end stands `behind_the_end` times that of some first token: what is read
    there where nothing masks it."""
    table = torch.log_softmax(logits, dim=1)
    first = behind_the_end * table[PREFIXES.index(()), 1]
    columns = [
        [table[PREFIXES.index(row[:t]), row[t]] if t < len(row) else first for t in range(LONGEST)] for row in rows
    ]
    return torch.stack([torch.stack(row) for row in columns])


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of `function` by central differences."""
    found = torch.zeros_like(at)
    for index in itertools.product(*map(range, at.shape)):
        shift = torch.zeros_like(at)
        shift[index] = step
        found[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return found
