"""The gradient of the KL between two language models, by enumeration of the answers. Imports no whelp: a peer runs it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LanguageModel = Callable[[Tensor], Any]
"""Tokens [B T] to something with `logits` [B T V]."""


def kl_gradient(
    policy: LanguageModel,
    reference: LanguageModel,
    parameters: Sequence[Tensor],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    end: int,
) -> list[Tensor]:
    """Of KL(policy || reference) in the mean over prompts, by the policy's parameters. `answers` are all that there are."""
    total = torch.zeros(())
    for prompt in prompts:
        log_p = log_probabilities(policy, prompt, answers, end)
        with torch.no_grad():
            log_q = log_probabilities(reference, prompt, answers, end)
        total = total + (log_p.exp() * (log_p - log_q)).sum() / len(prompts)
    return list(torch.autograd.grad(total, list(parameters), allow_unused=True, materialize_grads=True))


def log_probabilities(
    model: LanguageModel, prompt: Sequence[int], answers: Sequence[Sequence[int]], end: int
) -> Tensor:
    """log p(answer | prompt) [A]; a shorter answer is filled up behind its end, where nothing counts."""
    longest = max(map(len, answers))
    rows = torch.tensor([[*prompt, *answer, *[end] * (longest - len(answer))] for answer in answers])
    counts = torch.tensor([[i < len(answer) for i in range(longest)] for answer in answers])
    logits = model(rows).logits[:, len(prompt) - 1 : -1].double()
    each = torch.log_softmax(logits, -1).gather(2, rows[:, len(prompt) :, None]).squeeze(2)
    return (each * counts).sum(1)


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    flat = [torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (one, other)]
    return float(torch.cosine_similarity(*flat, dim=0))
