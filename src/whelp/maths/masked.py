"""Sums and means over the True positions of a mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Sum over True positions; what stands elsewhere, NaN included, does not count."""
    return torch.where(mask, values, values.new_zeros(())).sum()


def masked_row_sums(values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B"]:
    """Sum over the True positions of each row: the log-probability of an answer from those of its tokens."""
    return torch.where(mask, values, values.new_zeros(())).sum(1)


def masked_mean(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Mean over True positions; raises ValueError when there are none."""
    count = mask.sum()
    if count == 0:
        raise ValueError("the mean over an empty mask is not defined")
    return masked_sum(values, mask) / count


def masked_whiten(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], eps: float = 1e-8) -> Float[Tensor, "*S"]:
    """Centre and scale over the True positions of the whole batch (population variance); zero elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + eps), values.new_zeros(()))


def last_true(mask: Bool[Tensor, "B R"]) -> Bool[Tensor, "B R"]:
    """True at the last True position of each row only; all False for an empty row."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)
