"""The points of `benchmarks/growth.py` do the work that they say, and its slope is that of a power."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
growth = pytest.importorskip("growth", reason="benchmarks/ lies beside tests/")


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_slope_of_a_power(power):
    points = [{"x": x, "seconds": 3.0 * x**power} for x in (8, 16, 32, 64)]
    assert growth.slope(points, "seconds") == pytest.approx(power)


@pytest.mark.parametrize(("rows", "length"), [(3, 48), (40, 16)])
def test_a_batch_of_any_size_repeats_the_prompts(rows, length):
    work = {"texts": ["a", "b", "c", "d"], "prompts": [[1], [2], [3], [4]], "settings": {"ppo.num_ppo_epochs": 4}}
    found = growth.of_size(work, rows, length)
    assert [len(found[name]) for name in ("texts", "prompts", "lengths")] == [rows] * 3
    assert set(found["lengths"]) == {length}
    assert found["texts"][:3] == ["a", "b", "c"]
    assert found["settings"] == {"ppo.num_ppo_epochs": 4, "ppo.batch_size": rows, "ppo.response_length": length}


def test_the_shapes_have_the_weights_that_they_say():
    for millions, (width, layers, heads, key_value_heads, inner) in growth.SHAPES.items():
        keys = width // heads * key_value_heads
        layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
        assert (49_152 * width + layers * layer + width) / 1e6 == pytest.approx(millions, rel=0.03)
