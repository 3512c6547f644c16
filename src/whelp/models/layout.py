"""How several sequences are given to a model in one pass: flat, or padded where the model's attention cannot read that.

Flat is one row of tokens: there is no padding, and what the sequences of a group begin with stands there once. Norms and matrix
products see each token for itself. Attention alone sees sequences: there the row is spread into one line a sequence, with the
ordinary causal mask, and what comes out is laid flat again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from whelp.models.anatomy import Pretrained

FLAT = "whelp"
"""The name, in transformers' registers, of the attention that reads flat rows."""
USUAL = "sdpa"


@dataclass(frozen=True, slots=True)
class Padded:
    """One line a sequence, zeros behind. Under causal attention nothing real sees what stands behind it, so no mask is needed."""

    place: Int[Tensor, "B T"]
    """Where each position of each sequence stands in the output, all lines one after the other."""

    def join(self, sequences: Sequence[Tensor]) -> Tensor:
        """[L_i, ...] to [B, T, ...]"""
        return pad_right(sequences)

    @property
    def arguments(self) -> dict[str, Any]:
        """With which a decoder is called."""
        return {}


@dataclass(frozen=True, slots=True)
class Flat:
    """All sequences in one line of N tokens."""

    place: Int[Tensor, "B T"]
    """Where each position of each sequence stands in the line; 0 behind its end."""
    origin: Int[Tensor, "N"]
    """The inverse: the b * T + t that each token of the line comes from."""
    positions: Int[Tensor, "N"]
    """How far into its sequence each token is."""
    shared: Sequence[int]
    """How many of its first tokens each sequence has from the first one of its group."""

    def join(self, sequences: Sequence[Tensor]) -> Tensor:
        """[L_i, ...] to [1, N, ...]"""
        return torch.cat([rows[count:] for rows, count in zip(sequences, self.shared, strict=True)])[None]

    @property
    def arguments(self) -> dict[str, Any]:
        """With which a decoder is called. The mask says nothing: given one, transformers makes none."""
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.place.device)
        return {"position_ids": self.positions[None], "attention_mask": nothing, "layout": self}


Layout = Padded | Flat


def pad_right(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def padded(tokens: Sequence[Sequence[int]], device: torch.device) -> Padded:
    width = max(map(len, tokens))
    return Padded(torch.arange(len(tokens) * width, device=device).view(len(tokens), width))


def flat(tokens: Sequence[Sequence[int]], group: Sequence[int], device: torch.device) -> Flat:
    counts, width = shared(tokens, group), max(map(len, tokens))
    first: dict[int, int] = {}
    place = torch.zeros(len(tokens), width, dtype=torch.long)
    origin: list[int] = []
    positions: list[int] = []
    for row, (name, count) in enumerate(zip(group, counts, strict=True)):
        length = len(tokens[row])
        place[row, :count] = place[first.setdefault(name, row), :count]
        place[row, count:length] = torch.arange(len(origin), len(origin) + length - count)
        origin += range(row * width + count, row * width + length)
        positions += range(count, length)
    return Flat(place.to(device), torch.tensor(origin, device=device), torch.tensor(positions, device=device), counts)


def shared(tokens: Sequence[Sequence[int]], group: Sequence[int]) -> list[int]:
    """The number of tokens with which each sequence begins as the first one of its group does: none in the first itself."""
    first: dict[int, int] = {}
    counts = []
    for row, (mine, name) in enumerate(zip(tokens, group, strict=True)):
        if name not in first:
            first[name] = row
            counts.append(0)
            continue
        other = tokens[first[name]]
        pairs = enumerate(zip(mine, other, strict=False))
        counts.append(next((i for i, (a, b) in pairs if a != b), min(len(mine), len(other))))
    return counts


# -- attention over a flat row ----------------------------------------------------------------------------------------


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    layout: Flat | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' usual attention, for query, key and value [1 heads N D] of a flat row; gives [1 N heads D]."""
    usual = AttentionInterface()[USUAL]
    if layout is None:
        return usual(module, query, key, value, attention_mask, **others)
    shape = layout.place.shape
    lines = layout.place.flatten()

    def spread(rows: Tensor) -> Tensor:
        """[1 heads N D] to [B heads T D]"""
        return rows[0].transpose(0, 1).index_select(0, lines).unflatten(0, shape).transpose(1, 2)

    mask = window(shape[1], others.get("sliding_window"), query.device)
    result, _ = usual(module, spread(query), spread(key), spread(value), mask, **others)
    return result.flatten(0, 1).index_select(0, layout.origin)[None], None


def window(width: int, sliding_window: int | None, device: torch.device) -> Bool[Tensor, "1 1 T T"] | None:
    """True where a token is seen; None where the causal mask alone will do."""
    if sliding_window is None or width <= sliding_window:
        return None
    place = torch.arange(width, device=device)
    behind = place[:, None] - place[None, :]
    return ((behind >= 0) & (behind < sliding_window))[None, None]


AttentionInterface.register(FLAT, attend)
AttentionMaskInterface.register(FLAT, sdpa_mask)


def may_read_flat(model: Pretrained) -> bool:
    """True where its attention is the usual one."""
    return model.config._attn_implementation == USUAL


def allow_flat(model: Pretrained) -> None:
    model.set_attn_implementation(FLAT)


def forbid_flat(model: Pretrained) -> None:
    model.set_attn_implementation(USUAL)


def reads_flat(model: Pretrained) -> bool:
    """True of a model, or of a part of one, that is allowed to."""
    return model.config._attn_implementation == FLAT
