"""What is predicted of memory and time, beside what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from whelp.cli import app
from whelp.scaling import H100, LAPTOP, SHAPES, Shape, Work, memory, operations, peak, seconds, shape_of

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks")]
growth = pytest.importorskip("growth", reason="benchmarks/ lies beside tests/")
POINTS = [(point, series) for series, point in growth.ppo_points("float32")]


@pytest.mark.parametrize(("point", "series"), POINTS, ids=[f"{series} {point['x']}" for point, series in POINTS])
def test_a_prediction_is_within_a_quarter_of_what_was_measured(point, series):
    shape, work = growth.shape_and_work(series, point["x"])
    assert sum(seconds(shape, work, LAPTOP).values()) == pytest.approx(point["seconds"], rel=0.25)
    assert peak(shape, work, LAPTOP) / 2**20 == pytest.approx(point["peak_mb"], rel=0.25)


def test_the_shapes_have_the_weights_that_their_makers_say():
    for name, billions in {"135m": 0.1345, "1.7b": 1.71, "8b": 8.03, "70b": 70.6}.items():
        assert SHAPES[name].total / 1e9 == pytest.approx(billions, rel=0.01), name


def test_a_shape_is_read_from_a_model(tiny_model_folder):
    shape = shape_of(json.loads((tiny_model_folder("llama") / "config.json").read_text()))
    assert (shape.hidden, shape.layers, shape.heads, shape.key_value_heads, shape.inner) == (32, 4, 4, 2, 48)
    assert not shape.is_tied


def test_operations_are_two_a_weight_and_token_and_three_times_that_to_learn():
    shape = Shape(hidden=8, layers=2, heads=2, key_value_heads=2, inner=16, vocabulary=10)
    layer = 4 * 8 * 8 + 3 * 8 * 16
    found = operations(shape, Work(rows=3, prompt=5, response=7, epochs=2, trainable_layers=1))
    assert found["prefill"] == 2 * 2 * layer * 3 * 5
    assert found["decode"] == 2 * (2 * layer + 80) * 3 * 7
    assert found["score"] == 2 * (layer + 4 * layer) * 3 * 12 + 2 * 2 * 80 * 21
    assert found["learn"] == 2 * (2 * 3 * 2 * layer * 36 + 2 * 2 * 80 * 21)


def test_devices_share_what_can_be_shared():
    shape, work = SHAPES["8b"], Work(rows=1024, prompt=256, response=512)
    one, eight = (memory(shape, work, H100, n) for n in (1, 8))
    assert eight["reference"] - shape.beside * 2 == pytest.approx((one["reference"] - shape.beside * 2) / 8)
    assert eight["held activations"] == one["held activations"] == 0  # nothing is frozen
    assert seconds(shape, work, H100, 8)["learn"] == pytest.approx(seconds(shape, work, H100, 1)["learn"] / 8)
    assert "talk" not in seconds(shape, work, H100, 1)
    frozen = Work(rows=1024, prompt=256, response=512, trainable_layers=4)
    assert memory(shape, frozen, H100, 8)["frozen trunk"] > memory(shape, frozen, H100, 64)["frozen trunk"]


def test_the_command():
    told = CliRunner().invoke(app, ["doctor", "--plan", "70b", "--devices", "8"])
    assert told.exit_code == 0
    assert "70.55 billion weights in 80 layers" in told.output
    assert "more than the 80 that it has" in told.output
    fits = CliRunner().invoke(app, ["doctor", "--plan", "1.7b", "--devices", "8", "--trainable_layers", "4"])
    assert "at the most" in fits.output
    assert "more than" not in fits.output
