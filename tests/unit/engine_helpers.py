"""What the tests of the engine share: sequences, terms, targets, and log probabilities computed slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from whelp.engines.base import Held, OptimizerSpec, Term
from whelp.engines.batching import response_index
from whelp.engines.local import LocalEngine
from whelp.maths.preference import PreferenceTargets
from whelp.maths.sft import CrossEntropy, SFTTargets
from whelp.types import Sequences

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
LR = 1e-3
STEADY = OptimizerSpec(eps=1e-3)
"""With a small eps Adam blows rounding errors of the smallest gradients up to whole steps."""


def sequences_of(seed: int = 0, vocabulary: int = 290, lengths=(9, 17, 4, 12, 12, 7), group=()) -> Sequences:
    """Random tokens; the last third is response, and in longer ones an earlier turn too."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths]
    masks = [tuple(t >= 2 * n // 3 or (n > 10 and 3 <= t < 5) for t in range(n)) for n in lengths]
    return Sequences(tokens, masks, group)


def response_table(sequences: Sequences) -> torch.Tensor:
    return response_index(sequences.is_response)[2]


def sft_term(name: str, held: Held, coef: float = 1.0) -> Term:
    return Term(name, held, SFTTargets(response_table(held.sequences)), CrossEntropy(), coef)


def weights_of(engine: LocalEngine, name: str) -> dict[str, torch.Tensor]:
    state = {}
    for i, member in enumerate(engine.models[name].members):
        state |= {f"{i}.branch.{k}": v.clone() for k, v in member.branch.state_dict().items()}
        state |= {f"{i}.head.{k}": v.clone() for k, v in member.head.state_dict().items()}
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def preference_targets(count: int) -> PreferenceTargets:
    """Groups of two rows: the first is better."""
    rows = torch.arange(count)
    probability = torch.full((count, 2), math.nan)
    probability[0::2, 1], probability[1::2, 0] = 1.0, 0.0
    return PreferenceTargets(rows // 2, rows % 2, probability, torch.zeros(count), torch.ones(count))


PAIRS = (0, 0, 1, 1, 2, 2)


@torch.no_grad()
def slow_logprobs(
    model: nn.Module, sequences: Sequences, temperature=1.0
) -> tuple[list[list[float]], list[list[float]]]:
    """One sequence at a time, unpadded, all logits."""
    logprobs, entropies = [], []
    for tokens, mask in zip(sequences.tokens, sequences.is_response, strict=True):
        p = torch.softmax(model(input_ids=torch.tensor([tokens])).logits[0].double() / temperature, -1)
        at = [t for t, flag in enumerate(mask) if flag]
        logprobs.append([math.log(p[t - 1, tokens[t]]) for t in at])
        entropies.append([float(-(p[t - 1] * p[t - 1].log()).sum()) for t in at])
    return logprobs, entropies


def assert_rows(table: torch.Tensor, rows: list[list[float]], atol: float = 1e-5) -> None:
    assert table.shape == (len(rows), max(map(len, rows)))
    for found, expected in zip(table, rows, strict=True):
        torch.testing.assert_close(found[: len(expected)], torch.tensor(expected), rtol=1e-5, atol=atol)
        assert not found[len(expected) :].any()


def assert_values_and_rewards(engine: LocalEngine, sequences: Sequences, model: nn.Module) -> None:
    """Of the engine's models "value" and "reward", against the whole model one sequence at a time."""
    with engine.hold(sequences) as held:
        values, rewards = engine.values("value", held), engine.rewards("reward", held)
    heads = [m.head.linear.weight[0] for m in engine.models["reward"].members]
    value_head = engine.models["value"].members[0].head.linear.weight[0]
    expected = []
    for b, (tokens, mask) in enumerate(zip(sequences.tokens, sequences.is_response, strict=True)):
        with torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0].float()
        expected.append([float(hidden[t - 1] @ value_head) for t, flag in enumerate(mask) if flag])
        assert rewards[:, b].tolist() == pytest.approx([float(hidden[-1] @ h) for h in heads], rel=1e-4, abs=1e-4)
    assert_rows(values, expected, atol=1e-4)
