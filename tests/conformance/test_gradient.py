"""The first gradient of PPO is that of the leashed objective, and eight well-known mistakes make it another one.

The policy is a table of logits, all zero at first, so that a batch can hold every answer exactly as often as the policy gives it:
means over the batch are expectations. `stages/ppo.py: learn` runs on it as it is; an engine that only differentiates stands
behind. The oracle is E[r] - kl_coef * KL(pi || pi_ref) by enumeration, differentiated by central differences in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from mistakes import OF_THE_OPTIMUM, score_on_the_first_token
from table_policy import ANSWERS, END, LONGEST, PREFIXES, VOCABULARY, Answer, differences, is_response, token_logprobs
from torch import Tensor

from whelp.config import PPOConfig
from whelp.maths.outputs import LossSum, TokenScores, Values
from whelp.maths.policy import PPOLoss
from whelp.stages import ppo
from whelp.types import Completion, Message, Prompt, Sequences

KL_COEF = 0.5
PROMPT = Prompt("p", (Message("user", "go"),))
BATCH = [answer for answer in ANSWERS for _ in range(VOCABULARY ** (LONGEST - len(answer)))]
"""Every answer as often as the uniform policy gives it in 64 draws."""


@dataclass(frozen=True)
class Held:
    """What `learn` cuts into minibatches: answers instead of activations."""

    rows: Sequence[Answer]

    @property
    def sequences(self) -> Sequences:
        return Sequences([(0, *row) for row in self.rows], [(False, *(True for _ in row)) for row in self.rows])

    def select(self, rows: Sequence[int]) -> Held:
        return Held([self.rows[r] for r in rows])


class Differentiator:
    """An engine whose update notes the policy's gradient and changes nothing."""

    def __init__(self, logits: Tensor):
        self.logits = logits.clone().requires_grad_()
        self.gradient = torch.zeros_like(logits)

    def update(self, terms, lr):
        for term in terms:
            if term.model == "policy":
                logprobs = token_logprobs(self.logits, term.held.rows, behind_the_end=1.0)
                outputs = TokenScores(logprobs, is_response(term.held.rows))
                loss = term.loss(outputs, term.targets).loss / term.loss.count(term.targets)
                (self.gradient,) = torch.autograd.grad(loss, self.logits)
            else:
                term.loss(Values(torch.zeros(len(term.held.rows), LONGEST), is_response(term.held.rows)), term.targets)
        return {"policy/loss": 0.0, "value/loss": 0.0}


@dataclass(frozen=True)
class World:
    """Logits of the policy and the reference, a reward for each answer, and any critic."""

    logits: Tensor
    reference: Tensor
    rewards: dict[Answer, float]
    values: Tensor


@pytest.fixture
def world() -> World:
    generator = torch.Generator().manual_seed(5)
    zeros = torch.zeros(len(PREFIXES), VOCABULARY, dtype=torch.float64)
    reference = torch.randn(zeros.shape, generator=generator, dtype=torch.float64)
    rewards = torch.randn(len(ANSWERS), generator=generator, dtype=torch.float64).tolist()
    values = torch.randn(len(PREFIXES), generator=generator, dtype=torch.float64)
    return World(zeros, reference, dict(zip(ANSWERS, rewards, strict=True)), values)


def critic(world: World, rows: Sequence[Answer]) -> Tensor:
    """The values before every token, and something else behind the end."""
    values = [[world.values[PREFIXES.index(row[:t])] if t < len(row) else 0.3 for t in range(LONGEST)] for row in rows]
    return torch.tensor(values, dtype=world.values.dtype)


def gradient(world: World) -> Tensor:
    """Of the objective, as `learn` ascends it: a token's mean times the tokens an answer has on average."""
    engine = Differentiator(world.logits)
    old, ref = (token_logprobs(logits, BATCH, 1.0) for logits in (world.logits, world.reference))
    # An answer that has no other beside it: among those of a batch that holds each as often as is likely, none is drawn apart.
    prompts = [replace(PROMPT, id=str(i)) for i in range(len(BATCH))]
    completions = [
        Completion(prompt, "", row, (0.0,) * len(row), row[-1] == END)
        for prompt, row in zip(prompts, BATCH, strict=True)
    ]
    rewards = torch.tensor([world.rewards[row] for row in BATCH], dtype=old.dtype)
    values, entropy = critic(world, BATCH), torch.zeros_like(old)
    rollout = ppo.Rollout(completions, Held(BATCH), is_response(BATCH), old, ref, entropy, values, rewards, rewards)
    config = PPOConfig(
        total_episodes=64, batch_size=64, num_mini_batches=1, num_ppo_epochs=1, critic_warmup_iterations=0, gamma=1.0,
        lam=1.0, whiten_advantages=False,
    )  # fmt: skip
    ppo.learn(engine, rollout, KL_COEF, config, step=1, iterations=2, seed=0)
    return -engine.gradient * float(is_response(BATCH).sum()) / len(BATCH)


def objective(logits: Tensor, world: World) -> Tensor:
    log_pi, log_ref = (token_logprobs(table, ANSWERS).sum(1) for table in (logits, world.reference))
    rewards = torch.tensor([world.rewards[answer] for answer in ANSWERS], dtype=log_pi.dtype)
    return (log_pi.exp() * (rewards - KL_COEF * (log_pi - log_ref))).sum()


def check(world: World, record: Callable[[str, float], None]) -> None:
    expected = differences(lambda at: objective(at, world), world.logits)
    assert expected.abs().max() > 0.05
    found = gradient(world)
    record("largest error", float((found - expected).abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_first_gradient_is_that_of_the_objective(world: World, record_property) -> None:
    assert len(BATCH) == VOCABULARY**LONGEST
    check(world, record_property)


def test_a_constant_added_to_every_reward_changes_nothing(world: World) -> None:
    higher = replace(world, rewards={answer: reward + 3.0 for answer, reward in world.rewards.items()})
    torch.testing.assert_close(gradient(world), gradient(higher), atol=1e-12, rtol=0)


def leave_one_out(world, rewards, rows, group):
    return ppo.rloo(rewards, is_response(rows), group)


def critic_beside_other_answers(world, rewards, rows, group):
    advantages, _ = ppo.gae(rewards, critic(world, rows), is_response(rows), 1.0, 1.0)
    return ppo.beside_group(advantages, is_response(rows), group)


@pytest.mark.parametrize("compare", [leave_one_out, critic_beside_other_answers])
def test_comparing_answers_to_a_prompt_has_the_gradient_of_the_objective(world: World, compare: Callable) -> None:
    """Over all pairs of answers to one prompt, each weighed by how likely the policy gives it, at any policy."""
    logits = torch.randn(world.logits.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    logprobs, ref = token_logprobs(logits.requires_grad_()), token_logprobs(world.reference)
    response, count = is_response(ANSWERS), len(ANSWERS)
    scores = torch.tensor([world.rewards[answer] for answer in ANSWERS], dtype=torch.float64)
    rewards = ppo.shaped_rewards(scores, logprobs.detach(), ref, response, KL_COEF)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count)).reshape(-1)
    group = torch.arange(count * count).repeat_interleave(2)
    advantages = compare(world, rewards[pairs], [ANSWERS[i] for i in pairs.tolist()], group)
    likely = logprobs.detach().sum(1).exp()
    weights = (likely[:, None] * likely[None]).reshape(-1).repeat_interleave(2) / 2
    (found,) = torch.autograd.grad((weights[:, None] * advantages * logprobs[pairs]).sum(), logits)
    expected = differences(lambda at: objective(at, world), logits.detach())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# -- mistakes ---------------------------------------------------------------------------------------------------------

rollout_of = ppo.Rollout


def no_end_mask(completions, held, is_response, *rest):
    """What stands behind an answer's end counts as answer, and the score comes at the end of the row."""
    padded = [replace(completion, logprobs=(0.0,) * LONGEST) for completion in completions]
    return rollout_of(padded, held, torch.ones_like(is_response), *rest)


@dataclass(frozen=True, slots=True)
class SequenceMean(PPOLoss):
    """A mean over each answer's tokens, then over answers: short answers weigh more."""

    def count(self, targets):
        return float(targets.is_response.any(1).sum()) * float(is_response(BATCH).sum()) / len(BATCH)

    def __call__(self, outputs, targets):
        ratio = (outputs.logprobs - targets.old_logprobs).exp()
        terms = torch.where(targets.is_response, -ratio * targets.advantages, 0.0)
        return LossSum((terms.sum(1) / targets.is_response.sum(1)).sum() * float(is_response(BATCH).sum()) / len(BATCH))


MISTAKES = OF_THE_OPTIMUM | {
    "score on the wrong token": ("shaped_rewards", score_on_the_first_token),
    "no end mask": ("Rollout", no_end_mask),
    "sequence-mean loss": ("PPOLoss", SequenceMean),
}


@pytest.mark.parametrize(("where", "mistake"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_in_the_gradient(
    world: World, monkeypatch: pytest.MonkeyPatch, record_property, where: str, mistake
) -> None:
    monkeypatch.setattr(ppo, where, mistake)
    with pytest.raises(AssertionError):
        check(world, record_property)
