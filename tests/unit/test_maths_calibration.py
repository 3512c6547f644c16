"""Calibration against a slow loop, a grid and a world whose probabilities are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from maths_helpers import randn

from whelp.maths.calibration import NOT_SURE, expected_calibration_error, reliability, temperature, tempered


def signed(margins: torch.Tensor, true_temperature: float, seed: int) -> torch.Tensor:
    """Margins whose sign is right as often as sigmoid(|margin| / true_temperature) says."""
    draw = torch.Generator().manual_seed(seed)
    is_right = torch.rand(len(margins), generator=draw) < torch.sigmoid(margins.abs() / true_temperature)
    return torch.where(is_right, margins.abs(), -margins.abs())


def slow_error(margins, bins):
    """Guo et al. 2017, eq. 3, by a loop over bins (lo, hi]."""
    total = 0.0
    for k in range(bins):
        low, high = 0.5 + 0.5 * k / bins, 0.5 + 0.5 * (k + 1) / bins
        inside = []
        for m in margins:
            sureness = 1 / (1 + math.exp(-abs(m)))
            if low <= sureness < high or (k == bins - 1 and sureness >= high):
                inside.append((sureness, 1.0 if m > 0 else 0.5 if m == 0 else 0.0))
        if inside:
            sure, right = np.mean(inside, axis=0)
            total += len(inside) / len(margins) * abs(sure - right)
    return total


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_the_error_is_that_of_a_slow_loop(bins):
    margins = torch.cat([2 * randn(300, seed=1), torch.tensor([0.0, 40.0, -40.0])]).double()
    assert expected_calibration_error(margins, bins) == pytest.approx(slow_error(margins.tolist(), bins), abs=1e-12)
    found = reliability(margins, bins)
    assert sum(b.n for b in found) == 303
    assert [b.confidence for b in found] == sorted(b.confidence for b in found)


def test_who_is_right_as_often_as_sure_has_no_error_and_temperature_one():
    margins = signed(2 * randn(40_000, seed=2), 1.0, seed=3)
    assert expected_calibration_error(margins) < 0.01
    assert temperature(margins) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("true", [0.5, 3.0])
def test_the_temperature_is_found_and_mends_the_error(true):
    margins = signed(3 * randn(20_000, seed=4), true, seed=5)
    grid = scipy.optimize.minimize_scalar(
        lambda t: np.logaddexp(0, -margins.numpy() / t).mean(), bounds=(0.05, 20), method="bounded"
    )
    assert temperature(margins) == pytest.approx(grid.x, rel=1e-3)
    assert temperature(margins) == pytest.approx(true, rel=0.06)
    clusters = torch.arange(len(margins)) // 4
    assert expected_calibration_error(margins) > 0.04
    assert expected_calibration_error(tempered(margins, clusters)) < 0.015


def test_a_temperature_comes_from_the_other_half():
    clusters = torch.tensor([5, 5, 9, 9, 12, 12])
    margins = torch.tensor([1.0, -0.5, 2.0, -1.0, 3.0, 1.0])
    mine, other = [0, 1, 4, 5], [2, 3]
    after = tempered(margins, clusters)
    torch.testing.assert_close(after[mine], margins[mine] / temperature(margins[other]))
    torch.testing.assert_close(after[other], margins[other] / temperature(margins[mine]))
    torch.testing.assert_close(tempered(margins, torch.zeros(6, dtype=torch.long)), margins)


def test_who_is_mostly_wrong_is_sure_of_nothing_and_stays_wrong():
    wrong = -signed(3 * randn(4_000, seed=6), 3.0, seed=7)
    assert temperature(wrong) == pytest.approx(NOT_SURE)
    after = tempered(wrong, torch.arange(len(wrong)))
    rate = float((wrong > 0).double().mean())
    assert rate < 0.45
    assert expected_calibration_error(after) == pytest.approx(0.5 - rate, abs=1e-3), "not sure of it, and still wrong"
