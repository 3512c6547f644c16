"""What the tests of the formulas share: random numbers and masks."""

from __future__ import annotations

import math

import torch

NAN = math.nan


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefix_mask(lengths: list[int], width: int | None = None) -> torch.Tensor:
    """True at the first lengths[b] positions of row b."""
    width = max(lengths) if width is None else width
    return torch.tensor([[t < length for t in range(width)] for length in lengths]).reshape(len(lengths), width)
