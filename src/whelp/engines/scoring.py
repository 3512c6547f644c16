"""From final hidden states to what losses read: log-probabilities, values, rewards."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

CHUNK = 512
"""Response tokens whose logits exist at one time in a forward pass without gradients."""
BLOCK = 16
"""Rows of logits whose softmax is taken at one time on a processor: what lies between the steps then stays in its cache. Over
whole chunks every step would write 100 MB, and most of its time goes into getting those pages from the system. An accelerator
has no such pages, and starting its kernels would cost more than they do."""


class TokenLogprob(torch.autograd.Function):
    """log softmax(logits)[target], remembering only the logits in their own number format.

    The backward pass writes the gradient over the logits: a second pass through the same graph raises torch's error.
    """

    @staticmethod
    def forward(ctx: Any, logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        log_normaliser = torch.cat([torch.logsumexp(block.float(), dim=-1) for block in blocks(logits)])
        ctx.save_for_backward(logits, targets, log_normaliser)
        return logits.gather(1, targets[:, None]).squeeze(1).float() - log_normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets, log_normaliser = ctx.saved_tensors
        parts = map(blocks, (logits, targets, log_normaliser, gradients[0]))
        for block, target, normaliser, gradient in zip(*parts, strict=True):
            result = (block.float() - normaliser[:, None]).exp_().mul_(-gradient[:, None])
            block.copy_(result.scatter_add_(1, target[:, None], gradient[:, None]))
        return logits, None


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
        for block in blocks(logits):
            log_p = torch.log_softmax(block.float(), dim=-1)
            entropies.append(-(log_p.exp() * log_p).sum(-1))
    if not logprobs:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(logprobs), torch.cat(entropies)


def blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(BLOCK if rows.device.type == "cpu" else CHUNK)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature
