"""A preallocated key-value cache whose rows are independent: each has its own length and can be refilled."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from whelp.models.trunk import Cut


@dataclass(slots=True)
class Window:
    """What the next forward pass writes and reads: shared by all layers of one cache."""

    rows: Tensor | None = None
    """Rows to fill from position 0 (a prefill); None while decoding."""
    positions: Int[Tensor, "B"] | None = None
    """Decoding: where each of the first B rows writes its new token."""
    width: int = 0
    """Decoding: positions of the cache that are read."""


class SlotLayer(CacheLayerMixin):
    """Keys and values [S, heads, T, D] of one layer."""

    is_sliding = False
    is_compileable = False

    def __init__(self, slots: int, length: int, window: Window):
        super().__init__()
        self.slots, self.length, self.window = slots, length, window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros(self.slots, key_states.shape[1], self.length, key_states.shape[3])
        self.values = value_states.new_zeros(self.slots, value_states.shape[1], self.length, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values, window = self.keys, self.values, self.window
        assert keys is not None and values is not None
        if window.rows is not None:
            keys[window.rows, :, : key_states.shape[2]] = key_states
            values[window.rows, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        assert window.positions is not None
        batch = len(key_states)
        rows = torch.arange(batch, device=key_states.device)
        keys[rows, :, window.positions] = key_states[:, :, 0]
        values[rows, :, window.positions] = value_states[:, :, 0]
        return keys[:batch, :, : window.width], values[:batch, :, : window.width]

    def move(self, source: int, target: int, length: int) -> None:
        for table in (self.keys, self.values):
            assert table is not None
            table[target, :, :length] = table[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.length

    get_max_cache_shape = get_max_length


class SlotCache(Cache):
    """One layer for each layer of the model, trunk and branch together."""

    def __init__(self, layers: int, slots: int, length: int):
        self.window = Window()
        super().__init__(layers=[SlotLayer(slots, length, self.window) for _ in range(layers)])

    def prefill(self, rows: Int[Tensor, "B"]) -> None:
        """The next forward pass fills `rows` from position 0 and sees nothing but its own tokens."""
        self.window.rows = rows

    def decode(self, positions: Int[Tensor, "B"]) -> None:
        """The next forward pass adds one token to each of the first B rows, at these positions."""
        self.window.rows, self.window.positions, self.window.width = None, positions, int(positions.max()) + 1

    def share(self, source: int, target: int, length: int) -> None:
        """Copy a row: the completions of one prompt share its prefill; the last row moves into a freed one."""
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            layer.move(source, target, length)


def forward(parts: Cut, tokens: Int[Tensor, "B T"], cache: SlotCache) -> Float[Tensor, "B T H"]:
    """Final hidden states of one pass of trunk and branch over one cache: whatever `prefill` or `decode` announced."""
    decoder = parts.branch.decoder
    extra: dict = {_cache_argument(decoder): cache, "use_cache": True}
    positions = cache.window.positions
    if cache.window.rows is not None:
        extra["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device)[None, :]
    else:
        assert positions is not None
        extra["position_ids"] = positions[:, None]
        extra["attention_mask"] = decode_masks(decoder.config, positions, cache.window.width)
    return parts.branch(parts.trunk(tokens, **extra), **extra)


def _cache_argument(decoder: nn.Module) -> str:
    """transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def decode_masks(
    config: object, positions: Int[Tensor, "B"], width: int
) -> Bool[Tensor, "B 1 1 W"] | dict[str, Tensor]:
    """What each row's new token may see: everything up to itself, or its sliding window.

    Models with layers of several types expect one mask for each type.
    """
    distance = positions[:, None] - torch.arange(width, device=positions.device)[None, :]
    full = (distance >= 0)[:, None, None, :]
    sliding_window = getattr(config, "sliding_window", None)
    near = full if not sliding_window else full & (distance < sliding_window)[:, None, None, :]
    types = getattr(config, "layer_types", None)
    if not types:
        return near
    return {"full_attention": full, "sliding_attention": near}
