"""The report's drawings: gaps, labels and long logs."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from report_helpers import put_lines

from whelp.report import write_report
from whelp.report.plots import Line, curves, forest, reliability


def test_a_gap_in_a_curve_is_a_gap_and_a_short_one_is_no_curve() -> None:
    drawn = curves("x", [Line("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, 2.0, 1.0])], "step")
    assert re.search(r'd="M[^"]*L[^"]*M[^"]*L[^"]*" style="[^"]*var\(--rlhf\)', drawn)
    assert curves("x", [Line("a", [0, 1], [None, 2.0])], "step") == "" and forest("x", [("a", [])], "") == ""


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    drawn = curves("x", [Line(name, [0, 1], [0.0, 1.0]) for name in "abc"], "step", {"d": 1.0})
    heights = sorted(float(y) for y in re.findall(r'text-anchor: start[^>]* y="([\d.]+)"', drawn))
    assert len(heights) == 4 and min(b - a for a, b in pairwise(heights)) > 9


def test_a_point_of_the_reliability_plot_stands_at_its_confidence_and_accuracy() -> None:
    """Its place in the picture, from where the diagonal's ends (0.5, 0.5) and (1, 1) are drawn."""
    points = [(0.6, 0.55), (0.75, 0.8), (0.9, 0.7)]
    drawn = reliability("x", [Line("as it is", [x for x, _ in points], [y for _, y in points])], "text")
    place = r"([\d.]+) ([\d.]+)"
    paths = re.findall(rf'd="M {place} ((?:L {place} ?)+)"', " ".join(drawn.split()))
    lines = [[(float(x), float(y)) for x, y in re.findall(place, " ".join((x, y, rest)))] for x, y, rest, *_ in paths]
    [((left, bottom), (right, top))] = [
        ends for ends in lines if len(ends) == 2 and ends[0][0] != ends[1][0] and ends[0][1] != ends[1][1]
    ]
    [curve] = [line for line in lines if len(line) == len(points)]
    for (x, y), (across, up) in zip(points, curve, strict=True):
        assert 0.5 + 0.5 * (across - left) / (right - left) == pytest.approx(x, abs=1e-3)
        assert 0.5 + 0.5 * (up - bottom) / (top - bottom) == pytest.approx(y, abs=1e-3)


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    put_lines(tmp_path / "sft/metrics.jsonl", [{"step": i, "loss": math.sin(i)} for i in range(50_000)])
    assert write_report(tmp_path).stat().st_size < 60_000
