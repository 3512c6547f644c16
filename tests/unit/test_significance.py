"""Tests, corrections and sample sizes against other libraries, slow definitions and simulations; how often they are wrong."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from whelp.maths.significance import holm, mcnemar, prompts_needed, sign_flip
from whelp.maths.stats import clustered_bootstrap, clustered_wilson, percentile_interval, wilson


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What passes before and after, by what became of it."""
    before = torch.tensor([True] * (both + lost) + [False] * (gained + neither))
    after = torch.tensor([True] * both + [False] * lost + [True] * gained + [False] * neither)
    return before, after


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 1), (5, 5), (3, 12), (12, 3), (40, 61), (900, 1010)])
def test_mcnemar_is_a_binomial_test_of_what_changed(lost: int, gained: int) -> None:
    before, after = answers(7, lost, gained, 30)
    n = lost + gained
    exact = scipy.stats.binomtest(gained, n).pvalue if n else 1.0
    assert mcnemar(before, after) == pytest.approx(exact, rel=1e-9)
    less = scipy.stats.binom.pmf(gained, n, 0.5) if lost != gained else 0.0  # the formula of Fagerland et al. 2013
    assert mcnemar(before, after, mid_p=True) == pytest.approx(exact - less, rel=1e-9)


def test_mcnemar_of_a_published_table() -> None:
    """Fagerland et al. 2013, table 1 (Bentur et al. 2009): 1 lost, 7 gained of 21; exact 0.070, mid-p 0.039."""
    before, after = answers(1, 1, 7, 12)
    assert (round(mcnemar(before, after), 3), round(mcnemar(before, after, mid_p=True), 3)) == (0.07, 0.039)


@pytest.mark.parametrize("mid_p", [False, True])
@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (3, 12), (20, 11), (8, 8)])
def test_coins_for_single_answers_are_mcnemars_test(lost: int, gained: int, mid_p: bool) -> None:
    before, after = answers(5, lost, gained, 9)
    differences = after.float() - before.float()
    flipped = sign_flip(differences, torch.arange(len(differences)), mid_p, draws=40_000)
    assert flipped == pytest.approx(mcnemar(before, after, mid_p), abs=0.01)


@pytest.mark.parametrize("mid_p", [False, True])
def test_coins_are_thrown_for_prompts_and_not_for_answers(mid_p: bool) -> None:
    """Nine prompts of two to four answers each, against all 2 ** 9 ways to swap the models."""
    draw = torch.Generator().manual_seed(3)
    clusters = torch.arange(9).repeat_interleave(torch.tensor([2, 3, 4] * 3))
    differences = torch.randint(-1, 3, (len(clusters),), generator=draw).clamp(max=1).float()
    sums = [float(differences[clusters == one].sum()) for one in range(9)]
    everything = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in itertools.product((1, -1), repeat=9)
    ]
    found = abs(sum(sums))
    exact = sum(x > found for x in everything) + sum(x == found for x in everything) * (0.5 if mid_p else 1.0)
    by_prompt = sign_flip(differences, clusters, mid_p, draws=40_000)
    assert by_prompt == pytest.approx(exact / len(everything), abs=0.01)
    assert sign_flip(differences, torch.arange(len(clusters)), mid_p) != pytest.approx(by_prompt, abs=0.01)


def test_coins_and_no_difference_at_all() -> None:
    assert sign_flip(torch.zeros(30), torch.arange(30)) == 1.0
    assert sign_flip(torch.zeros(0), torch.zeros(0, dtype=torch.long)) == 1.0
    assert sign_flip(torch.tensor([0.1, 0.2, -0.3]), torch.zeros(3, dtype=torch.long)) == 1.0, (
        "rounding is no difference"
    )
    assert 0 < sign_flip(torch.ones(60), torch.arange(60), draws=999) <= 1 / 1000
    some = torch.tensor([0.3, -0.1, 0.7, 0.2, -0.4])
    assert sign_flip(some, torch.arange(5), seed=1) == sign_flip(-some, torch.arange(5), seed=1)


def slow_holm(p_values: list[float]) -> list[float]:
    """The corrected p-value of a test is the smallest level at which the step-down procedure rejects it."""

    def rejected(level: float) -> set[int]:
        left = sorted(range(len(p_values)), key=p_values.__getitem__)
        found: set[int] = set()
        while left and p_values[left[0]] <= level / len(left) + 1e-12:
            found.add(left.pop(0))
        return found

    levels = sorted({1.0, *(min(1.0, p * k) for p in p_values for k in range(1, len(p_values) + 1))})
    return [next((level for level in levels if i in rejected(level)), 1.0) for i in range(len(p_values))]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7))
def test_holm_steps_down(p_values: list[float]) -> None:
    corrected = holm(torch.tensor(p_values, dtype=torch.float64)).tolist()
    assert corrected == pytest.approx(slow_holm(p_values), abs=1e-9)


def test_holm_of_an_example_and_of_nothing() -> None:
    found = holm(torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(torch.zeros(0)).tolist() == []


def test_holm_keeps_false_alarms_rare() -> None:
    """Eight suites without a difference, and two with one: at 5%, at most 5% of the evaluations raise a false alarm."""
    draw = torch.Generator().manual_seed(0)
    chance = torch.rand(3000, 8, generator=draw, dtype=torch.float64)
    real = torch.rand(3000, 2, generator=draw, dtype=torch.float64) * 1e-3
    found = torch.stack([holm(p) for p in torch.cat([chance, real], 1)])
    false = float((found[:, :8] < 0.05).any(1).double().mean())
    assert 0.03 < false < 0.06
    assert float((found[:, 8:] < 0.05).double().mean()) == 1.0
    assert float((chance < 0.05).any(1).double().mean()) > 0.3, "without a correction"


def compared(n: int, discordance: float, difference: float, draw: np.random.Generator) -> torch.Tensor:
    """Differences of n prompts with one answer each."""
    gained, lost = (discordance + difference) / 2, (discordance - difference) / 2
    return torch.from_numpy(draw.choice([-1.0, 0.0, 1.0], n, p=[lost, 1 - discordance, gained]))


@pytest.mark.parametrize(("discordance", "difference"), [(0.06, 0.03), (0.2, 0.05), (0.3, 0.1)])
def test_as_many_prompts_as_are_needed_show_the_difference_in_four_of_five(
    discordance: float, difference: float
) -> None:
    draw = np.random.default_rng(1)
    pilot = compared(20_000, discordance, difference, draw)
    n = prompts_needed(pilot, torch.arange(len(pilot)), difference)
    seen = 0
    for _ in range(600):
        found = compared(n, discordance, difference, draw)
        seen += mcnemar(found < 0, found > 0, mid_p=True) < 0.05
    assert seen / 600 == pytest.approx(0.8, abs=0.05)


def test_several_samples_need_fewer_prompts_by_as_much_as_they_tell() -> None:
    """Four samples of each prompt from each model, whose pass rates differ from prompt to prompt and by 4 points on average."""
    draw = np.random.default_rng(2)

    def differences(n: int) -> torch.Tensor:
        rate = draw.uniform(0.1, 0.86, n)
        passed = draw.random((2, n, 4)) < np.stack([rate, rate + 0.04])[:, :, None]
        return torch.from_numpy((passed[1].astype(float) - passed[0]).reshape(-1))

    pilot = differences(20_000)
    clusters = torch.arange(20_000).repeat_interleave(4)
    n = prompts_needed(pilot, clusters, 0.04)
    assert n < prompts_needed(pilot[::4], clusters[::4], 0.04) / 3
    seen = sum(sign_flip(differences(n), clusters[: 4 * n], draws=500) < 0.05 for _ in range(200))
    assert seen / 200 == pytest.approx(0.8, abs=0.08)


def test_where_next_to_nothing_changed_a_difference_is_supposed() -> None:
    nothing = prompts_needed(torch.zeros(50), torch.arange(50))
    assert nothing == prompts_needed(torch.tensor([1.0] + [0.0] * 49), torch.arange(50)) > 200
    assert prompts_needed(torch.zeros(200), torch.arange(50).repeat_interleave(4)) < nothing
    assert prompts_needed(torch.zeros(50), torch.arange(50), power=0.9) > nothing
    with pytest.raises(ValueError, match="there are none"):
        prompts_needed(torch.zeros(0), torch.zeros(0, dtype=torch.long))


def test_clustered_wilson_is_wilsons_where_each_prompt_has_one_answer() -> None:
    passes = torch.tensor([1.0] * 41 + [0.0] * 9)
    assert clustered_wilson(passes, torch.arange(50)) == wilson(41, 50)
    assert math.isnan(clustered_wilson(torch.zeros(0), torch.zeros(0, dtype=torch.long)).mean)


def test_clustered_wilson_counts_alike_answers_once_and_unlike_ones_all() -> None:
    prompts = torch.arange(50).repeat_interleave(4)
    alike = clustered_wilson(torch.tensor([1.0] * 41 + [0.0] * 9).repeat_interleave(4), prompts)
    single = wilson(41, 50)
    assert (alike.mean, alike.n) == (0.82, 50)
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high), abs=0.005)
    unlike = clustered_wilson(torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(50), prompts)
    independent = wilson(150, 200)
    assert (unlike.low, unlike.high) == pytest.approx((independent.low, independent.high), abs=1e-9)
    everything = clustered_wilson(torch.ones(200), prompts)
    assert (everything.low, everything.high) == pytest.approx((wilson(50, 50).low, 1.0))


@pytest.mark.parametrize("units", [2, 3, 4, 6, 12, 24, 100, 450])
def test_a_percentile_interval_is_as_wide_as_students(units: int) -> None:
    """Of draws that are normal with the spread of a bootstrap, sqrt((n - 1) / n) of the standard error."""
    level = np.linspace(0.5 / 200_000, 1 - 0.5 / 200_000, 200_000)
    draws = torch.from_numpy(scipy.stats.norm.ppf(level)) * math.sqrt((units - 1) / units)
    low, high = percentile_interval(draws, units)
    student = scipy.stats.t.ppf(0.975, units - 1)
    assert -low == pytest.approx(high, abs=1e-6)
    if units > 3:
        assert high == pytest.approx(student, abs=0.01)
    else:
        assert high == pytest.approx(float(draws.max()), abs=0.1), "all of the draws"


def check_calibration(n: int, answers: int, shift: float, data_sets: int, draws: int) -> None:
    """Of `data_sets` in which the second model passes `shift` more of every prompt, hard or easy: the intervals of the difference
    and of the first model's rate miss the truth in 5 +- 2%, and so often do two samples of one model differ by each test."""
    draw = torch.Generator().manual_seed(n * answers)
    clusters = torch.arange(n).repeat_interleave(answers)
    found: Counter[str] = Counter()
    for seed in range(data_sets):
        rate = torch.rand(n, generator=draw) * (1 - shift)
        rates = torch.stack([rate, rate + shift])[:, :, None]
        first, second = (torch.rand(2, n, answers, generator=draw) < rates).float().flatten(1)
        difference, alone = (
            clustered_bootstrap(second - first, clusters, draws, seed),
            clustered_wilson(first, clusters),
        )
        found["interval of the difference"] += not difference.low <= shift <= difference.high
        found["interval of a rate"] += not alone.low <= (1 - shift) / 2 <= alone.high
        if not shift:
            found["coins"] += sign_flip(second - first, clusters, draws=draws, seed=seed) < 0.05
        if not shift and answers == 1:
            found["McNemar"] += mcnemar(first > 0, second > 0, mid_p=True) < 0.05
    assert len(found) == (2 if shift else 3 if answers > 1 else 4)
    assert all(0.03 <= count / data_sets <= 0.07 for count in found.values()), found


@pytest.mark.parametrize("answers", [pytest.param(1, marks=pytest.mark.proof), 4])
def test_one_model_against_itself_differs_in_one_of_twenty(answers: int) -> None:
    check_calibration(100, answers, shift=0.0, data_sets=600, draws=200)


@pytest.mark.proof
@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.parametrize("answers", [1, 4])
@pytest.mark.parametrize("n", [100, 250, 450])
def test_one_model_against_itself_and_a_better_one_at_length(n: int, answers: int, shift: float) -> None:
    check_calibration(n, answers, shift, data_sets=1000, draws=600)


@pytest.mark.proof
@pytest.mark.parametrize("answers", [1, 4])
def test_intervals_of_small_suites_and_of_rates_near_one_hold_too(answers: int) -> None:
    """24 prompts, of which 95% are passed. What plain percentiles would miss is what the docstrings say."""
    draw = torch.distributions.Beta(9.0, 0.5)
    clusters = torch.arange(24).repeat_interleave(answers)
    missed: Counter[str] = Counter()
    for seed in range(1000):
        torch.manual_seed(seed)
        passes = (torch.rand(24, answers) < draw.sample((24, 1))).float().flatten()
        bootstrap, score = clustered_bootstrap(passes, clusters, 600, seed), clustered_wilson(passes, clusters)
        missed["bootstrap"] += not bootstrap.low <= 9 / 9.5 <= bootstrap.high
        missed["score"] += not score.low <= 9 / 9.5 <= score.high
    assert missed["score"] <= 70
    assert missed["bootstrap"] > 100
