"""The linear head that turns a hidden state into one number."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whelp.maths.posterior import HeadPosterior


class ScalarHead(nn.Module):
    """hidden [.. H] -> scalar [..], kept and computed in fp32."""

    posterior: HeadPosterior | None
    """What it is sure of, once a reward model has learned."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, bias=False)
        self.posterior = None

    def reset(self, seed: int, std: float | None = None) -> ScalarHead:
        """Weights from N(0, std), by default 1 / sqrt(H + 1) (Stiennon et al. 2020); std 0 gives a zero head."""
        hidden_size = self.linear.in_features
        std = 1.0 / math.sqrt(hidden_size + 1) if std is None else std
        noise = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.linear.weight.copy_(noise * std)
        self.posterior = None
        return self

    def forward(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N"]:
        return self.linear(hidden.float()).squeeze(-1)
