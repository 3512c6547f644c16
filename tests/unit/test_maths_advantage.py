"""Masks, advantages and shaped rewards against a slow loop or a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maths_helpers import NAN, prefix_mask, randn

from whelp.maths.advantage import beside_group, gae, grpo, rloo
from whelp.maths.masked import last_true, masked_mean, masked_sum, masked_whiten
from whelp.maths.policy import shaped_rewards
from whelp.maths.shaping import (
    AdaptiveKL,
    FixedKL,
    RunningMoments,
    aggregate,
    clip_scores,
    doubt,
    missing_eos,
    preference,
)


def test_shapes_are_checked_while_tests_run():
    pytest.importorskip("beartype")
    with pytest.raises(TypeError, match=r"rewards|values"):
        gae(randn(2, 3), randn(2, 4), prefix_mask([3, 2]), 1.0, 0.95)


# -- masks ----------------------------------------------------------------------------------------------------------


def test_what_stands_off_the_mask_does_not_count():
    values = torch.tensor([[1.0, NAN, 5.0], [math.inf, 2.0, NAN]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked_sum(values, mask) == 8.0
    assert masked_mean(values, mask).item() == pytest.approx(8 / 3)
    white = masked_whiten(values, mask)
    assert white[~mask].tolist() == [0.0, 0.0, 0.0]
    expected = (np.array([1.0, 5.0, 2.0]) - 8 / 3) / np.std([1.0, 5.0, 2.0])
    np.testing.assert_allclose(white[mask].numpy(), expected, rtol=1e-5)


def test_no_gradient_comes_from_off_the_mask():
    values = torch.tensor([1.0, NAN], requires_grad=True)
    masked_sum(values, torch.tensor([True, False])).backward()
    assert values.grad.tolist() == [1.0, 0.0]


def test_the_mean_over_nothing_is_refused():
    with pytest.raises(ValueError, match="empty mask"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))


def test_whitening_equal_values_gives_zeros_and_not_nan():
    assert masked_whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_last_true(rows):
    found = last_true(torch.tensor(rows)).tolist()
    for row, result in zip(rows, found, strict=True):
        last = max((i for i, flag in enumerate(row) if flag), default=None)
        assert [i for i, flag in enumerate(result) if flag] == ([] if last is None else [last])


# -- advantages -----------------------------------------------------------------------------------------------------


def slow_gae(rewards, values, length, gamma, lam):
    """The definition: A_t is the (gamma lam)-weighted sum of all later TD errors."""
    v = [*values[:length], 0.0]
    delta = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    return [sum((gamma * lam) ** (i - t) * delta[i] for i in range(t, length)) for t in range(length)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_gae(lengths, gamma, lam, seed):
    width = max(lengths) + 1
    rewards, values = randn(len(lengths), width, seed=seed).double(), randn(len(lengths), width, seed=seed + 1).double()
    mask = prefix_mask(lengths, width)
    rewards[~mask] = NAN  # padding may hold anything
    values[~mask] = NAN
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(lengths):
        expected = slow_gae(rewards[b].tolist(), values[b].tolist(), length, gamma, lam)
        np.testing.assert_allclose(advantages[b, :length].numpy(), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            returns[b, :length].numpy(), np.add(expected, values[b, :length].numpy()), atol=1e-12
        )
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_at_its_two_ends():
    rewards, values = randn(1, 5), randn(1, 5, seed=1)
    mask = torch.ones(1, 5, dtype=torch.bool)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1))  # lam 1: the Monte Carlo return
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)
    after = torch.cat([values[:, 1:], torch.zeros(1, 1)], 1)
    torch.testing.assert_close(advantages, rewards + 0.9 * after - values)  # lam 0: the TD error


# -- shaped rewards -------------------------------------------------------------------------------------------------


def test_shaped_rewards():
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-0.5, NAN, NAN], [NAN, NAN, NAN]])
    reference = torch.tensor([[-1.5, -1.0, 0.0], [-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = prefix_mask([2, 1, 0], 3)
    rewards = shaped_rewards(torch.tensor([10.0, 20.0, 30.0]), logprobs, reference, mask, 0.1)
    expected = [[-0.05, 10.1, 0.0], [20.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_clip_scores():
    scores = torch.tensor([-7.0, 0.5, 9.0])
    assert clip_scores(scores, 5.0).tolist() == [-5.0, 0.5, 5.0]
    assert clip_scores(scores, None) is scores


def test_running_moments_are_those_of_everything_seen():
    batches = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * n + 50 for n in (3, 1, 8, 20)]
    moments = RunningMoments()
    for i, batch in enumerate(batches, 1):
        moments.update(batch)
        seen = torch.cat(batches[:i]).double()
        assert moments.mean == pytest.approx(float(seen.mean()), abs=1e-9)
        assert moments.squares / moments.count == pytest.approx(float(seen.var(correction=0)), abs=1e-9)
    everything = moments.normalize(torch.cat(batches))
    assert everything.mean() == pytest.approx(0.0, abs=1e-5) and everything.std(correction=0) == pytest.approx(
        1.0, abs=1e-5
    )


def test_equal_scores_normalize_to_zero():
    moments = RunningMoments()
    moments.update(torch.full((4,), 2.0))
    assert moments.normalize(torch.full((4,), 2.0)).tolist() == [0.0] * 4


def test_missing_eos():
    scores, is_finished = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert missing_eos(scores, is_finished, 3.0).tolist() == [1.0, -1.0]
    assert missing_eos(scores, is_finished, None).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 64 / 1000),
        (60.0, 1 + 0.2 * 64 / 1000),
        (0.0, 1 - 0.2 * 64 / 1000),
        (-5.0, 1 - 0.2 * 64 / 1000),
    ],
)
def test_adaptive_kl(kl, factor):
    leash = AdaptiveKL(0.2, target=6.0, horizon=1000)
    leash.update(kl, 64)
    assert leash.kl_coef == pytest.approx(0.2 * factor)


def test_adaptive_kl_finds_the_strength_that_gives_the_target():
    leash = AdaptiveKL(0.01, target=6.0, horizon=1000)
    for _ in range(500):
        leash.update(1.2 / leash.kl_coef, 64)  # a policy that drifts less, the shorter the leash
    assert leash.kl_coef == pytest.approx(0.2, rel=1e-3)


def test_fixed_kl():
    leash = FixedKL(0.05)
    leash.update(100.0, 64)
    assert leash.kl_coef == 0.05


@pytest.mark.parametrize("members", [1, 2, 5])
def test_one_score_of_an_ensemble(members):
    rewards = randn(members, 6, seed=members)
    columns = rewards.T.tolist()
    assert aggregate(rewards, "mean").tolist() == pytest.approx([float(np.mean(c)) for c in columns], abs=1e-6)
    assert aggregate(rewards, "min").tolist() == [min(c) for c in columns]
    expected = [float(np.mean(c) - 0.7 * np.var(c)) for c in columns]
    assert aggregate(rewards, "uncertainty", 0.7).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_doubt_of_an_ensemble_is_the_variance_of_what_its_members_may_mean():
    """Each member is a Gaussian: opinions are drawn from a member that is drawn itself."""
    rewards, variance = randn(3, 2, seed=1), torch.tensor([[0.5, 2.0], [1.0, 0.1], [0.0, 3.0]])
    draw = np.random.default_rng(0)
    member = draw.integers(3, size=400_000)
    for column in range(2):
        said = rewards[member, column].numpy() + variance[member, column].sqrt().numpy() * draw.normal(size=len(member))
        assert float(doubt(rewards, variance)[column]) == pytest.approx(float(said.var()), rel=0.01)
    expected = rewards.mean(0) - 0.7 * doubt(rewards, variance)
    torch.testing.assert_close(aggregate(rewards, "uncertainty", 0.7, variance), expected)


def by_hand(rewards, lengths, group, kind):
    """Advantages of whole answers, one loop for each definition."""
    totals = [float(row[:length].sum()) for row, length in zip(rewards, lengths, strict=True)]
    found = []
    for i, total in enumerate(totals):
        others = [totals[j] for j in range(len(totals)) if group[j] == group[i] and j != i]
        if kind == "rloo":
            found.append(total - sum(others) / len(others))
        else:
            everyone = [*others, total]
            mean = sum(everyone) / len(everyone)
            spread = (sum((x - mean) ** 2 for x in everyone) / (len(everyone) - 1)) ** 0.5
            found.append((total - mean) / (spread + 1e-4))
    return found


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_answers_to_one_prompt_are_compared(kind):
    draw = torch.Generator().manual_seed(1)
    lengths, group = [1, 3, 2, 4, 4, 1, 2], [0, 1, 0, 1, 2, 2, 0]
    rewards = torch.randn(7, 4, generator=draw)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    rewards[~mask] = math.nan
    advantages = {"rloo": rloo, "grpo": grpo}[kind](rewards, mask, torch.tensor(group))
    expected = torch.tensor(by_hand(rewards, lengths, group, kind))
    torch.testing.assert_close(advantages, torch.where(mask, expected[:, None], 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compare", [rloo, grpo])
def test_one_answer_has_nothing_to_be_compared_with(compare):
    with pytest.raises(ValueError, match="one answer"):
        compare(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.tensor([0, 0, 1]))


def test_what_the_critic_misjudged_about_a_prompt_is_taken_off():
    lengths, group = [1, 3, 2, 4, 4, 1, 2], [0, 1, 0, 1, 2, 3, 0]
    mask = prefix_mask(lengths, 4)
    advantages = torch.where(mask, randn(7, 4, seed=3), 0.0)
    found = beside_group(advantages, mask, torch.tensor(group))
    for i, length in enumerate(lengths):
        others = [float(advantages[j, 0]) for j in range(7) if group[j] == group[i] and j != i]
        off = sum(others) / len(others) if others else 0.0
        np.testing.assert_allclose(found[i, :length].numpy(), advantages[i, :length].numpy() - off, atol=1e-6)
    assert not found[~mask].any()


def test_beside_other_answers_a_critic_that_knows_nothing_is_leave_one_out():
    mask, group = prefix_mask([2, 3, 1, 4], 4), torch.tensor([0, 1, 0, 1])
    rewards = randn(4, 4, seed=4)
    advantages, _ = gae(rewards, torch.zeros(4, 4), mask, 1.0, 1.0)
    found, expected = beside_group(advantages, mask, group), rloo(rewards, mask, group)
    torch.testing.assert_close(found[:, 0], expected[:, 0])


def test_what_a_prompt_is_worth_does_not_matter_where_it_has_several_answers():
    mask, group = prefix_mask([2, 3, 1, 4], 4), torch.tensor([0, 1, 0, 1])
    rewards, values = randn(4, 4, seed=5), randn(4, 4, seed=6)
    worth = torch.tensor([[5.0], [-2.0]])[group]  # of the prompt, which the critic does not see
    scores = rewards + worth * last_true(mask)
    plain, moved = (beside_group(gae(r, values, mask, 1.0, 1.0)[0], mask, group) for r in (rewards, scores))
    torch.testing.assert_close(moved, plain, atol=1e-5, rtol=1e-5)


def test_a_preference_is_a_score_that_levels_off() -> None:
    ahead = torch.linspace(-30, 30, 241, dtype=torch.float64)
    found = preference(ahead, gain=0.7)
    torch.testing.assert_close(
        found, 1.4 * torch.tanh(ahead / 1.4), rtol=0, atol=1e-12
    )  # the same curve, otherwise written
    assert float(preference(torch.tensor([1e-3], dtype=torch.float64), 0.7)) == pytest.approx(1e-3, rel=1e-5), "slope 1"
