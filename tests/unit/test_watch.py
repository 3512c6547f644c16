"""The watch over PPO's batches: what it says of planted changes and of none."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from whelp.monitors.watch import MOST, PATIENCE, SIGNALS, Seen, Watch, deviation, seen

PROMPTS = [f"p-{i // 4}" for i in range(128)]


def batch(draw: random.Random, **changes: float) -> dict[str, list[float]]:
    """32 prompts with four answers each, as a policy that does nothing odd gives them; `changes` are added to a signal."""
    length = [draw.gauss(45, 12) for _ in range(32)]
    values = {
        "length": [max(1.0, length[i // 4] + draw.gauss(0, 8)) for i in range(128)],
        "repetition": [max(0.0, draw.gauss(-0.02, 0.04)) for _ in range(128)],
        "flattery": [float(draw.random() < 0.02) for _ in range(128)],
        "certainty": [float(draw.random() < 0.05) for _ in range(128)],
        "entropy": [max(0.0, draw.gauss(1.2, 0.3)) for _ in range(128)],
    }
    return {name: [value + changes.get(name, 0.0) for value in found] for name, found in values.items()}


@pytest.mark.parametrize(
    ("signal", "change"),
    [("length", 25.0), ("repetition", 0.15), ("flattery", 0.3), ("certainty", 0.3), ("entropy", -0.7)],
)
def test_a_planted_change_is_named_after_as_many_batches_as_it_waits(signal, change):
    draw, watch = random.Random(0), Watch()
    for _ in range(3):
        assert watch.observe(batch(draw), PROMPTS) == []
    found = [watch.observe(batch(draw, **{signal: change}), PROMPTS) for _ in range(PATIENCE)]
    assert all(not alarms for alarms in found[:-1])
    [alarm] = found[-1]
    assert alarm.signal == signal
    assert math.copysign(1, alarm.now - alarm.start) == math.copysign(1, change)
    assert signal in str(alarm)


def test_a_change_to_the_better_is_no_alarm():
    draw, watch = random.Random(0), Watch()
    better = {"length": -25.0, "repetition": -0.2, "flattery": -0.5, "certainty": -0.5, "entropy": 0.7}
    watch.observe(batch(draw), PROMPTS)
    assert all(watch.observe(batch(draw, **better), PROMPTS) == [] for _ in range(5))


def test_it_is_quiet_where_nothing_changes():
    """Two hundred runs of ten batches each."""
    loud = 0
    for seed in range(200):
        draw, watch = random.Random(seed), Watch()
        loud += sum(bool(watch.observe(batch(draw), PROMPTS)) for _ in range(10)) > 0
    assert loud <= 2


def test_a_sure_but_small_change_is_no_alarm():
    """Every answer a word longer: certain, and of no matter."""
    watch = Watch()
    plain = {signal.name: [1.0] * 128 for signal in SIGNALS}
    watch.observe(plain, PROMPTS)
    assert all(watch.observe(plain | {"length": [1.1] * 128}, PROMPTS) == [] for _ in range(3))
    assert watch.observe(plain | {"length": [1.3] * 128}, PROMPTS) == []
    assert [alarm.signal for alarm in watch.observe(plain | {"length": [1.3] * 128}, PROMPTS)] == ["length"]


def test_one_odd_batch_is_no_alarm():
    draw, watch = random.Random(3), Watch()
    watch.observe(batch(draw), PROMPTS)
    for _ in range(4):
        assert watch.observe(batch(draw, length=40.0), PROMPTS) == []
        assert watch.observe(batch(draw), PROMPTS) == []


def test_the_variance_of_a_mean_is_that_of_the_prompts_means():
    draw = random.Random(1)
    values = [draw.gauss(0, 1) for _ in range(12)]
    names = [name for name in "abcd" for _ in range(3)]
    means = [statistics.fmean(values[i : i + 3]) for i in range(0, 12, 3)]
    found = seen(values, names)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.variance == pytest.approx(statistics.stdev(means) ** 2 / 4)
    assert deviation(Seen(1.0, 0.09), Seen(2.0, 0.16)) == pytest.approx(2.0)
    assert deviation(Seen(1.0, 0.0), Seen(1.0, 0.0)) == 0.0
    assert deviation(Seen(1.0, 0.0), Seen(0.5, 0.0)) == -MOST


def test_one_prompt_says_nothing_of_others():
    watch = Watch()
    for length in (1.0, 50.0, 50.0, 50.0):
        assert watch.observe({signal.name: [length] * 4 for signal in SIGNALS}, ["a"] * 4) == []


def test_it_goes_on_from_what_a_checkpoint_holds():
    draw = random.Random(5)
    batches = [batch(draw), batch(draw), batch(draw, length=30.0), batch(draw, length=30.0)]
    whole, first = Watch(), Watch()
    expected = [whole.observe(one, PROMPTS) for one in batches]
    for one in batches[:3]:
        first.observe(one, PROMPTS)
    second = Watch.of_dict(json.loads(json.dumps(first.as_dict())))
    assert second.observe(batches[3], PROMPTS) == expected[3] != []
