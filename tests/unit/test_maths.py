"""Every formula against a slow loop, a closed form or another library."""

from __future__ import annotations

import math
import pickle
from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whelp.maths.advantage import gae
from whelp.maths.masked import last_true, masked_mean, masked_sum, masked_whiten
from whelp.maths.outputs import Loss, Rewards, TokenScores, Values
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets, shaped_rewards
from whelp.maths.preference import BradleyTerry, PreferenceTargets, comparisons
from whelp.maths.sft import CrossEntropy, SFTTargets
from whelp.maths.shaping import AdaptiveKL, FixedKL, clip_scores, missing_eos
from whelp.maths.stats import Estimate, clustered_bootstrap, length_controlled_win_rate, logistic_fit, wilson

NAN = math.nan


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefix_mask(lengths: list[int], width: int | None = None) -> torch.Tensor:
    """True at the first lengths[b] positions of row b."""
    width = max(lengths) if width is None else width
    return torch.tensor([[t < length for t in range(width)] for length in lengths]).reshape(len(lengths), width)


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


# -- PPO ------------------------------------------------------------------------------------------------------------

# ratio, advantage -> loss, d loss / d log pi, clipped?  (cliprange 0.2; d ratio / d log pi = ratio)
REGIONS = [
    (1.0, 2.0, -2.0, -2.0, 0.0),
    (1.0, -2.0, 2.0, 2.0, 0.0),
    (1.5, 2.0, -2.4, 0.0, 1.0),  # above, good: no reason to go on
    (1.5, -2.0, 3.0, 3.0, 0.0),  # above, bad: come back
    (0.5, 2.0, -1.0, -1.0, 0.0),  # below, good: come back
    (0.5, -2.0, 1.6, 0.0, 1.0),  # below, bad: no reason to go on
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "clipped"), REGIONS)
def test_the_six_regions_of_the_clipped_ratio(ratio, advantage, loss, gradient, clipped):
    mask = torch.tensor([[True, False]])
    logprobs = torch.tensor([[-1.0, NAN]], requires_grad=True)
    old = torch.tensor([[-1.0 - math.log(ratio), 0.0]])
    targets = PPOTargets(old, torch.tensor([[advantage, NAN]]), mask)
    result = PPOLoss(0.2)(TokenScores(logprobs, mask), targets)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert logprobs.grad[0, 0].item() == pytest.approx(gradient, rel=1e-5)
    assert logprobs.grad[0, 1] == 0
    assert result.sums["clipfrac"] == clipped
    assert result.sums["ratio"].item() == pytest.approx(ratio, rel=1e-5)
    assert result.sums["ratio_error"].item() == pytest.approx(abs(ratio - 1), abs=1e-6)
    assert result.sums["approxkl"].item() == pytest.approx(math.log(ratio) ** 2 / 2, rel=1e-5, abs=1e-9)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    mask = prefix_mask([3, 1], 3)
    logprobs = randn(2, 3).requires_grad_()
    advantages = randn(2, 3, seed=1)
    loss = PPOLoss()
    targets = PPOTargets(logprobs.detach(), advantages, mask)
    loss(TokenScores(logprobs, mask), targets).loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages * mask)
    assert loss.count(targets) == 4.0


@pytest.mark.parametrize(
    ("value", "old", "ret", "loss", "gradient", "clipped"),
    [
        (0.1, 0.0, 1.0, 0.405, -0.9, 0.0),  # inside the range
        (0.9, 0.0, 1.0, 0.32, 0.0, 1.0),  # ran ahead of the range: held back
        (0.9, 0.0, -1.0, 1.805, 1.9, 0.0),  # left the range on the wrong side: comes back
        (-0.5, 0.0, -1.0, 0.32, 0.0, 1.0),
    ],
)
def test_value_loss(value, old, ret, loss, gradient, clipped):
    values = torch.tensor([[value, 3.0]], requires_grad=True)
    targets = ValueTargets(torch.tensor([[old, NAN]]), torch.tensor([[ret, 0.0]]), torch.tensor([[True, False]]))
    result = ValueLoss(0.2)(Values(values, targets.is_value_target), targets)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad[0].tolist() == pytest.approx([gradient, 0.0], abs=1e-6)
    assert result.sums["clipfrac"] == clipped
    assert result.sums["error"].item() == pytest.approx((value - ret) ** 2, rel=1e-5)
    assert ValueLoss(0.2).count(targets) == 1.0


def test_cross_entropy():
    mask = prefix_mask([2, 1], 3)
    logprobs = torch.tensor([[-1.0, -2.0, NAN], [-4.0, NAN, NAN]])
    targets = SFTTargets(mask)
    assert CrossEntropy()(TokenScores(logprobs, mask), targets).loss == 7.0
    assert CrossEntropy().count(targets) == 3.0


# -- preferences ----------------------------------------------------------------------------------------------------


def slow_bradley_terry(rewards, groups):
    """rewards[m][b]; groups: lists of rows with the probability of every compared pair (i, j)."""
    total = 0.0
    for member in rewards:
        for rows, probability in groups:
            losses = []
            for i, j in combinations(range(len(rows)), 2):
                p = probability.get((i, j))
                if p is not None:
                    difference = member[rows[i]] - member[rows[j]]
                    win = 1 / (1 + math.exp(-difference))
                    losses.append(-p * math.log(win) - (1 - p) * math.log(1 - win))
            total += sum(losses) / len(losses) if losses else 0.0
    return total


def targets_of(groups, slots: int) -> PreferenceTargets:
    count = sum(len(rows) for rows, _ in groups)
    group, slot = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    table = torch.full((count, slots), NAN)
    for name, (rows, probability) in enumerate(groups):
        for place, row in enumerate(rows):
            group[row], slot[row] = 10 * name + 3, place
        for (i, j), p in probability.items():
            table[rows[i], j], table[rows[j], i] = p, 1 - p
    return PreferenceTargets(group, slot, table)


@st.composite
def ranked(draw_from):
    """Prompts with K completions each, in mixed-up rows; any pair compared or not, sure, tied or soft."""
    sizes = draw_from(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rows = draw_from(st.permutations(range(sum(sizes))))
    groups, start = [], 0
    for size in sizes:
        members = list(rows[start : start + size])
        start += size
        pairs = {}
        for pair in combinations(range(size), 2):
            p = draw_from(st.sampled_from([None, 0.0, 0.5, 1.0, 0.3, 0.875]))
            if p is not None:
                pairs[pair] = p
        groups.append((members, pairs))
    return groups


@settings(max_examples=80, deadline=None)
@given(ranked(), st.integers(1, 3), st.integers(0, 1000))
def test_k_wise_bradley_terry(groups, members, seed):
    count = sum(len(rows) for rows, _ in groups)
    rewards = 2 * randn(members, count, seed=seed)
    targets = targets_of(groups, 4)
    loss = BradleyTerry()
    result = loss(Rewards(rewards), targets)
    assert result.loss.item() == pytest.approx(slow_bradley_terry(rewards.tolist(), groups), rel=1e-4, abs=1e-6)
    assert loss.count(targets) == sum(bool(pairs) for _, pairs in groups)
    assert len(comparisons(targets)[0]) == sum(len(pairs) for _, pairs in groups)


@settings(max_examples=30, deadline=None)
@given(ranked(), st.integers(0, 1000))
def test_sums_do_not_depend_on_how_the_prompts_are_cut_into_pieces(groups, seed):
    rewards = randn(2, sum(len(rows) for rows, _ in groups), seed=seed)
    targets = targets_of(groups, 4)
    loss = BradleyTerry()
    whole = loss(Rewards(rewards), targets)
    pieces = []
    for rows, _ in groups:
        piece = PreferenceTargets(targets.group[rows], targets.slot[rows], targets.probability[rows])
        pieces.append((loss(Rewards(rewards[:, rows]), piece), loss.count(piece)))
    assert sum(p.loss.item() for p, _ in pieces) == pytest.approx(whole.loss.item(), rel=1e-5, abs=1e-6)
    assert sum(count for _, count in pieces) == loss.count(targets)
    for name, value in whole.sums.items():
        assert sum(p.sums[name].item() for p, _ in pieces) == pytest.approx(value.item(), rel=1e-5, abs=1e-6)


def test_equal_rewards_cost_ln_2_a_prompt():
    groups = [([0, 1, 2], {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.5}), ([3, 4], {(0, 1): 0.0})]
    targets = targets_of(groups, 3)
    loss = BradleyTerry()(Rewards(torch.full((1, 5), 1.7)), targets).loss.item() / BradleyTerry().count(targets)
    assert loss == pytest.approx(math.log(2))


def test_a_tie_pulls_together_and_a_win_pulls_apart():
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0]], requires_grad=True)
    targets = targets_of([([0, 1], {(0, 1): 0.5}), ([2, 3], {(0, 1): 1.0})], 2)
    BradleyTerry()(Rewards(rewards), targets).loss.backward()
    tie, win = 1 / (1 + math.exp(-1.0)) - 0.5, 1 / (1 + math.exp(-1.0)) - 1.0
    assert rewards.grad[0].tolist() == pytest.approx([tie, -tie, win, -win], rel=1e-5)


def test_accuracy_and_margin():
    groups = [([0, 1], {(0, 1): 1.0}), ([2, 3], {(0, 1): 0.0}), ([4, 5], {(0, 1): 0.8}), ([6, 7], {(0, 1): 1.0})]
    groups.append(([8, 9], {(0, 1): 0.5}))
    rewards = torch.tensor([[3.0, 1.0, 5.0, 4.0, 0.0, 0.5, 2.0, 2.0, 1.0, 7.0]])  # right, wrong, wrong, equal, a tie
    sums = BradleyTerry()(Rewards(rewards), targets_of(groups, 2)).sums
    assert sums["accuracy"].item() == pytest.approx(2.0)
    assert sums["margin"].item() == pytest.approx(2.0 - 1.0 - 0.5 + 0.0)


def test_members_do_not_touch_each_other():
    groups = [([0, 1], {(0, 1): 1.0})]
    rewards = torch.tensor([[1.0, 0.0], [-3.0, 2.0]], requires_grad=True)
    BradleyTerry()(Rewards(rewards), targets_of(groups, 2)).loss.backward()
    alone = torch.tensor([[-3.0, 2.0]], requires_grad=True)
    BradleyTerry()(Rewards(alone), targets_of(groups, 2)).loss.backward()
    torch.testing.assert_close(rewards.grad[1:], alone.grad)


def test_nothing_compared_is_no_unit():
    targets = targets_of([([0], {}), ([1, 2], {})], 2)
    assert BradleyTerry().count(targets) == 0.0
    assert BradleyTerry()(Rewards(randn(1, 3)), targets).loss == 0.0


@pytest.mark.parametrize("loss", [PPOLoss(0.1), ValueLoss(0.3), BradleyTerry(), CrossEntropy()])
def test_losses_travel(loss):
    assert isinstance(loss, Loss)
    assert pickle.loads(pickle.dumps(loss)) == loss


# -- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (5, 10), (81, 263), (1, 1), (999, 1000)])
def test_wilson_solves_its_quadratic(successes, n):
    """The ends are the rates p with |rate - p| = z sqrt(p (1 - p) / n)."""
    z, rate = 1.959964, successes / n
    roots = np.roots([1 + z * z / n, -(2 * rate + z * z / n), rate * rate])
    estimate = wilson(successes, n)
    assert [estimate.low, estimate.high] == pytest.approx(sorted(np.clip(roots.real, 0, 1)), abs=1e-9)
    assert (estimate.mean, estimate.n) == (rate, n)


def test_wilson_of_a_published_example():
    """Newcombe 1998, table I: 81 of 263, score method without continuity correction."""
    estimate = wilson(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_of_nothing_nothing_is_known():
    assert math.isnan(wilson(0, 0).mean)
    assert math.isnan(clustered_bootstrap(torch.zeros(0), torch.zeros(0, dtype=torch.long)).mean)
    assert wilson(3, 4).as_dict().keys() == {"mean", "low", "high", "n"}


def test_the_bootstrap_covers_the_truth_when_answers_of_a_prompt_are_alike():
    """30 prompts, 4 answers each, most of the variance between prompts: ~95% with clusters, far less without."""
    hits = naive = 0
    clusters = torch.arange(30).repeat_interleave(4)
    for seed in range(150):
        values = randn(30, seed=seed).repeat_interleave(4) + 0.3 * randn(120, seed=1000 + seed)
        estimate = clustered_bootstrap(values, clusters, draws=300, seed=seed)
        hits += estimate.low <= 0.0 <= estimate.high
        alone = clustered_bootstrap(values, torch.arange(120), draws=300, seed=seed)
        naive += alone.low <= 0.0 <= alone.high
    assert 0.88 <= hits / 150 <= 0.99
    assert naive / 150 < 0.8


def test_the_bootstrap_knows_its_mean_and_its_units():
    values, clusters = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([7, 7, 7, 9])
    estimate = clustered_bootstrap(values, clusters)
    assert estimate.mean == 4.0
    assert estimate.n == 2
    # Two clusters, drawn twice each: 2, (6 + 10) / 4 or 10.
    assert (estimate.low, estimate.high) == (2.0, 10.0)
    assert clustered_bootstrap(values, clusters, seed=3) == clustered_bootstrap(values, clusters, seed=3)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("separable", [False, True])
def test_logistic_fit_against_scipy(ridge, separable):
    x = randn(60, 3).double()
    score = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    noise = 0.0 if separable else randn(60, seed=5).double() * 2
    y = ((score + noise) > 0).double()

    def objective(w):
        z = x.numpy() @ w
        return np.mean(np.logaddexp(0, z) - y.numpy() * z) + ridge / 2 * w @ w

    expected = scipy.optimize.minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    np.testing.assert_allclose(logistic_fit(x, y, ridge=ridge).numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_logistic_fit_does_not_run_away(scale):
    """Newton's step overshoots where the data are separated widely."""
    x = scale * randn(40, 2).double()
    y = (x[:, 0] > 0).double()
    weights = logistic_fit(x, y)
    p = torch.sigmoid(x @ weights)
    gradient = x.T @ (p - y) / len(y) + 1e-3 * weights
    assert weights.isfinite().all()
    assert gradient.abs().max() < 1e-6


def test_logistic_fit_is_antisymmetric():
    x, y = randn(50, 2), (randn(50, seed=3) > 0).float()
    torch.testing.assert_close(logistic_fit(-x, 1 - y), logistic_fit(x, y))


def test_length_controlled_win_rate_sees_through_length():
    """A judge who likes length; answers of equal quality, but those of the first are longer."""
    difference = 40 * randn(1200) + 60
    scale = difference.double().std(correction=0)
    p = torch.sigmoid(2.0 * torch.tanh(difference.double() / scale))
    wins = torch.bernoulli(p, generator=torch.Generator().manual_seed(1)).float()
    estimate = length_controlled_win_rate(wins, difference, draws=60)
    assert wins.mean() > 0.7
    assert estimate.low < 0.5 < estimate.high
    assert estimate.n == 1200


def test_length_controlled_win_rate_recovers_a_planted_one():
    difference = 40 * randn(3000) - 30
    scale = difference.double().std(correction=0)
    p = torch.sigmoid(scipy.special.logit(0.7) + 1.5 * torch.tanh(difference.double() / scale))
    wins = torch.bernoulli(p, generator=torch.Generator().manual_seed(1)).float()
    estimate = length_controlled_win_rate(wins, difference, draws=60)
    assert abs(float(wins.mean()) - 0.7) > 0.1
    assert estimate.mean == pytest.approx(0.7, abs=0.04)
    assert estimate.low < 0.7 < estimate.high


def test_length_controlled_win_rate_of_equal_lengths_is_the_win_rate():
    wins = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5] * 20)
    estimate = length_controlled_win_rate(wins, torch.zeros(100), draws=20)
    assert estimate.mean == pytest.approx(0.7, abs=0.002)
    assert isinstance(estimate, Estimate)
