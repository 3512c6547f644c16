"""Sequences of many lengths into rectangular pieces that fit a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pieces(lengths: Sequence[int], group: Sequence[int], token_budget: int) -> list[list[int]]:
    """Rows in pieces of at most `token_budget` padded tokens (more only where one group alone is larger).

    Rows of one group stay together; groups are sorted by length, so that little is padding.
    """
    groups: dict[int, list[int]] = {}
    for row, name in enumerate(group):
        groups.setdefault(name, []).append(row)
    ordered = sorted(groups.values(), key=lambda rows: (max(lengths[r] for r in rows), rows[0]))
    result: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for rows in ordered:
        longest_with = max(longest, max(lengths[r] for r in rows))
        if current and longest_with * (len(current) + len(rows)) > token_budget:
            result.append(current)
            current, longest_with = [], max(lengths[r] for r in rows)
        current = current + rows
        longest = longest_with
    return [*result, current] if current else result


def pad_right(rows: Sequence[Tensor]) -> Tensor:
    """[L_i, ...] tensors to [B, max L, ...], zeros behind. Under causal attention nothing real sees what stands behind it,
    so no attention mask is needed."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


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
