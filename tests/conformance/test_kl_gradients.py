"""Where the leash's gradient is right: KL estimators in the reward and in the loss, against the KL itself.

The policy is a table (see `table_policy`) whose answers are enumerated, so that expectations are sums. The oracle is the KL by
its definition, differentiated by central differences in float64. See Tang and Munos 2025 and Liu et al. 2025 on k1, k2 and k3
(Schulman 2020) as rewards and losses.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from table_policy import ANSWERS, PREFIXES, VOCABULARY, differences, is_response, token_logprobs
from torch import Tensor

from whelp.maths.advantage import gae
from whelp.maths.outputs import TokenScores
from whelp.maths.policy import PPOLoss, PPOTargets, shaped_rewards

KL_COEF = 0.7
IS_RESPONSE = is_response(ANSWERS)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(pi || pi_ref) over whole answers, by its definition."""
    log_pi, log_ref = token_logprobs(logits).sum(1), token_logprobs(reference).sum(1)
    return (log_pi.exp() * (log_pi - log_ref)).sum()


def on_policy(loss_of_answers: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The expected gradient of a loss of each answer: a sum over answers with weights that carry no gradient."""
    logits = logits.clone().requires_grad_()
    logprobs = token_logprobs(logits)
    weights = logprobs.detach().sum(1).exp()
    (gradient,) = torch.autograd.grad((weights * loss_of_answers(logprobs)).sum(), logits)
    return gradient


def same(found: Tensor, expected: Tensor, record: Callable[[str, float], None], atol: float = 1e-6) -> None:
    record("largest error", float((found - expected).abs().max()))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def tables() -> tuple[Tensor, Tensor]:
    """Logits of the policy and of its reference."""
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2))
    return one, other


def test_the_answers_are_all_there_are(tables: tuple[Tensor, Tensor]) -> None:
    assert len(ANSWERS) == 1 + 3 * (1 + 3 * 4)
    torch.testing.assert_close(token_logprobs(tables[0]).sum(1).exp().sum(), torch.ones((), dtype=torch.float64))


def test_k1_in_the_reward_has_the_gradient_of_the_kl(tables: tuple[Tensor, Tensor], record_property) -> None:
    """Our own path: shaped rewards without a score, GAE with lambda 1 and no critic, the clipped loss at ratio 1."""
    logits, reference = tables
    old, ref = token_logprobs(logits), token_logprobs(reference)
    rewards = shaped_rewards(torch.zeros(len(ANSWERS), dtype=old.dtype), old, ref, IS_RESPONSE, KL_COEF)
    advantages, _ = gae(rewards, torch.zeros_like(old), IS_RESPONSE, gamma=1.0, lam=1.0)
    loss = PPOLoss()

    def of_answers(logprobs: Tensor) -> Tensor:
        rows = []
        for row in range(len(ANSWERS)):
            here = slice(row, row + 1)
            targets = PPOTargets(old[here], advantages[here], IS_RESPONSE[here])
            rows.append(loss(TokenScores(logprobs[here], IS_RESPONSE[here]), targets).loss)
        return torch.stack(rows)

    expected = KL_COEF * differences(lambda at: kl(at, reference), logits)
    same(on_policy(of_answers, logits), expected, record_property)


def test_k2_of_the_whole_answer_as_loss_has_the_gradient_of_the_kl(
    tables: tuple[Tensor, Tensor], record_property
) -> None:
    logits, reference = tables
    ref = token_logprobs(reference).sum(1)
    gradient = on_policy(lambda logprobs: 0.5 * (logprobs.sum(1) - ref) ** 2, logits)
    same(gradient, differences(lambda at: kl(at, reference), logits), record_property)


def test_k1_as_loss_has_no_gradient_on_average(tables: tuple[Tensor, Tensor], record_property) -> None:
    logits, reference = tables
    ref = token_logprobs(reference)
    gradient = on_policy(lambda logprobs: (logprobs - ref).sum(1), logits)
    same(gradient, torch.zeros_like(gradient), record_property, atol=1e-12)
    assert differences(lambda at: kl(at, reference), logits).abs().max() > 0.05


def test_k3_of_the_whole_answer_as_loss_has_the_gradient_of_the_other_kl(
    tables: tuple[Tensor, Tensor], record_property
) -> None:
    """It pulls to where KL(pi_ref || pi) is least: another leash than the one that was asked for."""
    logits, reference = tables
    ref = token_logprobs(reference).sum(1)

    def k3(logprobs: Tensor) -> Tensor:
        log_ratio = ref - logprobs.sum(1)
        return log_ratio.exp() - 1 - log_ratio

    other = differences(lambda at: kl(reference, at), logits)
    same(on_policy(k3, logits), other, record_property)
    assert (other - differences(lambda at: kl(at, reference), logits)).abs().max() > 0.05


def test_k3_in_the_reward_has_another_gradient(tables: tuple[Tensor, Tensor]) -> None:
    """k3 >= 0 is a fine estimate of the KL's value, but as a reward it moves the policy elsewhere."""
    logits, reference = tables
    log_ratio = token_logprobs(reference).sum(1) - token_logprobs(logits).sum(1)
    penalty = log_ratio.exp() - 1 - log_ratio
    gradient = on_policy(lambda logprobs: penalty * logprobs.sum(1), logits)
    assert (gradient - differences(lambda at: kl(at, reference), logits)).abs().max() > 0.05


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_summed_over_tokens_k2_and_k3_are_other_losses(tables: tuple[Tensor, Tensor], estimator: str) -> None:
    """With more than one token the sum of a token's estimates leaves out what a token does to those behind it."""
    logits, reference = tables
    ref = token_logprobs(reference)

    def per_token(logprobs: Tensor) -> Tensor:
        log_ratio = logprobs - ref
        each = 0.5 * log_ratio**2 if estimator == "k2" else (-log_ratio).exp() - 1 + log_ratio
        return (each * IS_RESPONSE).sum(1)

    gradient = on_policy(per_token, logits)
    target = (
        differences(lambda at: kl(at, reference), logits)
        if estimator == "k2"
        else differences(lambda at: kl(reference, at), logits)
    )
    assert (gradient - target).abs().max() > 0.02
