"""Sequences of many lengths into pieces that fit a token budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whelp.maths.outputs import Rewards


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed at one time."""

    piece: int
    """Tokens in a piece of a pass without gradients."""
    training_piece: int
    training_depth: int
    """Layers up to which a piece with gradients has so many tokens. Through more of them it has fewer, in proportion: what each
    layer keeps for the way back is most of the memory that a step takes."""
    piece_price: int
    """What a piece costs beside its tokens, in tokens: starting its kernels, and adding its gradients to the others'."""
    slots: int
    """Rows decoded together."""


PROCESSOR = Sizes(piece=4096, training_piece=1024, training_depth=16, piece_price=96, slots=64)
"""More rows do not raise the throughput of two cores."""
ACCELERATOR = Sizes(piece=65536, training_piece=32768, training_depth=1000, piece_price=8192, slots=512)
"""Starting a pass takes the time of thousands of tokens."""


def pieces(
    lengths: Sequence[int],
    group: Sequence[int],
    token_budget: int,
    piece_price: int = PROCESSOR.piece_price,
    own: Sequence[int] | None = None,
) -> list[list[int]]:
    """Rows in pieces of at most `token_budget` tokens (more only where one group alone is larger).

    Rows of one group stay together. Groups are sorted by length and cut where tokens plus `piece_price` a piece come to the
    least. Tokens are padded ones, or, in a flat layout, the `own` ones of each row; there only attention is padded, and counts
    from twice as many on.
    """
    groups: dict[int, list[int]] = {}
    for row, name in enumerate(group):
        groups.setdefault(name, []).append(row)
    ordered = sorted(groups.values(), key=lambda rows: (max(lengths[r] for r in rows), rows[0]))
    price, first = [0.0], [0]  # of the first n groups: the least price, and where their last piece starts
    for end in range(1, len(ordered) + 1):
        longest, count, filled = max(lengths[r] for r in ordered[end - 1]), 0, 0.0
        choices: list[tuple[float, int]] = []
        for start in reversed(range(end)):
            count += len(ordered[start])
            filled += sum(own[r] for r in ordered[start]) if own else 0
            tokens = max(filled, count * longest / 2) if own else count * longest
            if choices and tokens > token_budget:
                break
            choices.append((price[start] + tokens + piece_price, start))
        cheapest, start = min(choices)
        price.append(cheapest)
        first.append(start)
    result: list[list[int]] = []
    end = len(ordered)
    while end:
        result.append([row for rows in ordered[first[end] : end] for row in rows])
        end = first[end]
    return result[::-1]


def response_index(
    is_response: Sequence[Sequence[bool]],
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"], Bool[Tensor, "B R"]]:
    """Row and position of every response token, and the mask of the left-aligned [B R] table they fill in that order."""
    rows, positions, counts = [], [], []
    for row, mask in enumerate(is_response):
        here = [position for position, flag in enumerate(mask) if flag]
        rows += [row] * len(here)
        positions += here
        counts.append(len(here))
    width = max(counts, default=0)
    table = torch.arange(width)[None, :] < torch.tensor(counts)[:, None]
    return torch.tensor(rows, dtype=torch.long), torch.tensor(positions, dtype=torch.long), table


def targets_of(targets: Any, rows: Sequence[int]) -> Any:
    """These rows of every tensor in `targets`."""
    return dataclasses.replace(
        targets, **{field.name: getattr(targets, field.name)[list(rows)] for field in dataclasses.fields(targets)}
    )


def targets_beside(outputs: Any, targets: Any, rows: Sequence[int]) -> Any:
    """These rows, where the outputs lie; targets that are all tables over response tokens are cut to the outputs' width (a
    table of comparisons stands beside vectors)."""
    chosen = targets_of(targets, rows)
    tensors = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    beside: Tensor = outputs.rewards if isinstance(outputs, Rewards) else outputs.is_response
    if not isinstance(outputs, Rewards) and all(tensor.ndim == 2 for tensor in tensors.values()):
        tensors = {name: table[:, : beside.shape[1]] for name, table in tensors.items()}
    return dataclasses.replace(chosen, **{name: tensor.to(beside.device) for name, tensor in tensors.items()})
