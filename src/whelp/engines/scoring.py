"""From final hidden states to what losses read: log-probabilities, values, rewards."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHUNK = 512
"""Response tokens whose logits exist at one time in a forward pass without gradients."""


class TokenLogprob(torch.autograd.Function):
    """log softmax(logits)[target], remembering only the logits in their own number format."""

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        log_normaliser = torch.logsumexp(logits.float(), dim=-1)
        ctx.save_for_backward(logits, targets, log_normaliser)
        return logits.gather(1, targets[:, None]).squeeze(1).float() - log_normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        logits, targets, log_normaliser = ctx.saved_tensors
        probabilities = (logits.float() - log_normaliser[:, None]).exp_()
        result = probabilities.mul_(-gradient[:, None])
        result.scatter_add_(1, targets[:, None], gradient[:, None])
        return result.to(logits.dtype), None


def token_logprobs(
    head: nn.Module, hidden: Float[Tensor, "N H"], targets: Int[Tensor, "N"], temperature: float = 1.0
) -> Float[Tensor, "N"]:
    """Log-probability of each target under the head's distribution, logits made chunk by chunk."""
    parts = [
        TokenLogprob.apply(_tempered(head(h), temperature), t)
        for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def token_logprobs_and_entropy(
    head: nn.Module, hidden: Float[Tensor, "N H"], targets: Int[Tensor, "N"], temperature: float = 1.0
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """The same with the entropy of each distribution in nats; without gradients."""
    logprobs, entropies = [], []
    for h, t in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        logits = _tempered(head(h), temperature)
        logprobs.append(TokenLogprob.apply(logits, t))
        log_p = torch.log_softmax(logits.float(), dim=-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    if not logprobs:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(logprobs), torch.cat(entropies)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature
