"""The losses of PPO, SFT and preferences against a slow loop or a closed form."""

from __future__ import annotations

import contextlib
import math
import pickle
from dataclasses import fields, replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maths_helpers import NAN, prefix_mask, randn

from whelp.maths.outputs import Loss, Rewards, TokenScores, Values
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets
from whelp.maths.preference import BradleyTerry, DPOLoss, DPOTargets, PreferenceTargets, comparisons
from whelp.maths.sft import CrossEntropy, SFTTargets

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


def test_an_inverted_gate_is_found_in_the_regions(monkeypatch):
    """The smaller of the two losses instead of the larger: it goes on where it should stop, and stops where it should go on."""
    monkeypatch.setattr(torch, "maximum", torch.minimum)
    found = 0
    for region in REGIONS:
        with contextlib.suppress(AssertionError):
            test_the_six_regions_of_the_clipped_ratio(*region)
            found += 1
    assert found == 2, "at a ratio of one both are the same; nowhere else"


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


def slow_bradley_terry(rewards, groups, margins=None, weights=None, center=0.0):
    """rewards[m][b]; groups: lists of rows with the probability of every compared pair (i, j); a margin and a weight for each."""
    total = 0.0
    for member in rewards:
        for g, (rows, probability) in enumerate(groups):
            losses = []
            for i, j in combinations(range(len(rows)), 2):
                p = probability.get((i, j))
                if p is not None:
                    margin = (margins[g] if margins else 0.0) * (1 if p > 0.5 else -1 if p < 0.5 else 0)
                    difference = member[rows[i]] - member[rows[j]] - margin
                    win = 1 / (1 + math.exp(-difference))
                    losses.append(-p * math.log(win) - (1 - p) * math.log(1 - win))
                    losses[-1] += center * (member[rows[i]] + member[rows[j]]) ** 2
            total += (weights[g] if weights else 1.0) * sum(losses) / len(losses) if losses else 0.0
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
    return PreferenceTargets(group, slot, table, torch.zeros(count), torch.ones(count))


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
    assert loss.count(targets) == pytest.approx(sum(bool(pairs) for _, pairs in groups))
    assert len(comparisons(targets)[0]) == sum(len(pairs) for _, pairs in groups)


@settings(max_examples=40, deadline=None)
@given(ranked(), st.floats(0, 0.1), st.data())
def test_margins_weights_and_the_pull_to_zero(groups, center, data):
    margins, weights = (
        data.draw(st.lists(st.floats(least, 2), min_size=len(groups), max_size=len(groups))) for least in (0, 0.1)
    )
    count = sum(len(rows) for rows, _ in groups)
    margin, weight = torch.zeros(count), torch.zeros(count)
    for g, (rows, _) in enumerate(groups):
        margin[rows], weight[rows] = margins[g], weights[g]
    targets = replace(targets_of(groups, 4), margin=margin, weight=weight)
    rewards = randn(2, count, seed=count)
    loss = BradleyTerry(center)
    expected = slow_bradley_terry(rewards.tolist(), groups, margins, weights, center)
    assert loss(Rewards(rewards), targets).loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    counted = sum(w for w, (_, pairs) in zip(weights, groups, strict=True) if pairs)
    assert loss.count(targets) == pytest.approx(counted, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(ranked(), st.integers(0, 1000))
def test_sums_do_not_depend_on_how_the_prompts_are_cut_into_pieces(groups, seed):
    rewards = randn(2, sum(len(rows) for rows, _ in groups), seed=seed)
    targets = targets_of(groups, 4)
    loss = BradleyTerry()
    whole = loss(Rewards(rewards), targets)
    pieces = []
    for rows, _ in groups:
        piece = PreferenceTargets(*(getattr(targets, field.name)[rows] for field in fields(targets)))
        pieces.append((loss(Rewards(rewards[:, rows]), piece), loss.count(piece)))
    assert sum(p.loss.item() for p, _ in pieces) == pytest.approx(whole.loss.item(), rel=1e-5, abs=1e-6)
    assert sum(count for _, count in pieces) == pytest.approx(loss.count(targets))
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


@pytest.mark.parametrize("seed", range(3))
def test_dpo_against_its_formula_pair_by_pair(seed):
    """-log sigmoid(beta ((log pi_w - log ref_w) - (log pi_l - log ref_l))), in the mean over a prompt's pairs."""
    draw = torch.Generator().manual_seed(seed)
    ranks, lengths, beta = [[1, 2, 2], [2, 1]], [3, 1, 4, 2, 2], 0.3
    logprobs = torch.randn(5, 4, generator=draw)
    ref = torch.randn(5, generator=draw)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    targets = DPOTargets(
        torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1]),
        torch.tensor([[NAN, 1.0, 1.0], [0.0, NAN, 0.5], [0.0, 0.5, NAN], [NAN, 0.0, NAN], [1.0, NAN, NAN]]),
        torch.zeros(5), torch.ones(5), ref,
    )  # fmt: skip
    total, row = 0.0, 0
    for of_prompt in ranks:
        gain = [float(logprobs[row + i, : lengths[row + i]].sum() - ref[row + i]) for i in range(len(of_prompt))]
        costs = []
        for i in range(len(of_prompt)):
            for j in range(i + 1, len(of_prompt)):
                margin = beta * (gain[i] - gain[j])
                p = 0.5 if of_prompt[i] == of_prompt[j] else float(of_prompt[i] < of_prompt[j])
                costs.append(p * math.log1p(math.exp(-margin)) + (1 - p) * math.log1p(math.exp(margin)))
        total += sum(costs) / len(costs)
        row += len(of_prompt)
    assert float(DPOLoss(beta)(TokenScores(logprobs, mask), targets).loss) == pytest.approx(total, rel=1e-5)
    assert DPOLoss(beta).count(targets) == 2
