"""The report's drawings: gaps, labels and long logs."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

from report_helpers import put_lines

from whelp.report import write_report
from whelp.report.plots import Line, curves, forest


def test_a_gap_in_a_curve_is_a_gap_and_a_short_one_is_no_curve() -> None:
    drawn = curves("x", [Line("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, 2.0, 1.0])], "step")
    assert re.search(r'd="M[^"]*L[^"]*M[^"]*L[^"]*" style="[^"]*var\(--rlhf\)', drawn)
    assert curves("x", [Line("a", [0, 1], [None, 2.0])], "step") == "" and forest("x", [("a", [])], "") == ""


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    drawn = curves("x", [Line(name, [0, 1], [0.0, 1.0]) for name in "abc"], "step", {"d": 1.0})
    heights = sorted(float(y) for y in re.findall(r'text-anchor: start[^>]* y="([\d.]+)"', drawn))
    assert len(heights) == 4 and min(b - a for a, b in pairwise(heights)) > 9


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    put_lines(tmp_path / "sft/metrics.jsonl", [{"step": i, "loss": math.sin(i)} for i in range(50_000)])
    assert write_report(tmp_path).stat().st_size < 60_000
