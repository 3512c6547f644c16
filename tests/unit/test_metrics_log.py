"""Metrics come back as they were written; torn lines are dropped, damaged ones named."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whelp.errors import RunError
from whelp.runs.metrics import MetricsLog


def test_metrics_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "ppo")
    log.append(1, **{"objective/kl": np.float32(0.5), "loss": 0.1, "accuracy": {"a": [1, 2]}})
    log.append(2, loss=float("nan"), rewards=[1.0, float("-inf")], margin=2.0)
    assert MetricsLog.read(tmp_path / "ppo" / "metrics.jsonl") == [
        {"step": 1, "objective/kl": 0.5, "loss": 0.1, "accuracy": {"a": [1, 2]}},
        {"step": 2, "loss": None, "rewards": [1.0, None], "margin": 2.0, "nan": ["loss", "rewards"]},
    ]
    assert "NaN" not in log.path.read_text() and "Infinity" not in log.path.read_text()
    assert MetricsLog.read(tmp_path / "none.jsonl") == []


@given(texts=st.lists(st.text(), max_size=5), torn=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_any_text_survives_and_a_torn_line_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], torn: int
) -> None:
    log = MetricsLog(tmp_path_factory.mktemp("samples"), "samples.jsonl")
    for step, text in enumerate(texts):
        log.append(step, text=text)
    whole = log.path.read_bytes() if texts else b""
    log.append(99, text="é" * 30)
    os.truncate(log.path, len(whole) + torn)
    assert [record["text"] for record in MetricsLog.read(log.path)] == texts
    log.truncate_after(1000)
    assert log.path.read_bytes() == whole


def test_line_separators_and_lone_surrogates_in_an_answer(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, "samples.jsonl")
    text = "a\u2028b\u0085c\r\nd\ud800"
    log.append(1, text=text)
    assert [record["text"] for record in MetricsLog.read(log.path)] == [text]
    assert log.path.name == "samples.jsonl" and log.path.read_bytes().count(b"\n") == 1


def test_truncation_keeps_the_steps_up_to_the_checkpoint_byte_for_byte(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.truncate_after(3)
    assert not log.path.exists()
    for step in (1, 2, 2, 3, 4):
        log.append(step, loss=step / 3)
    lines = log.path.read_bytes().splitlines(keepends=True)
    with open(log.path, "ab") as file:
        file.write(b'{"step": 5, "lo')
    log.truncate_after(2)
    assert log.path.read_bytes() == b"".join(lines[:3])
    log.append(3, loss=1.0)
    assert [record["step"] for record in MetricsLog.read(log.path)] == [1, 2, 2, 3]
    log.truncate_after(-1)
    assert log.path.read_bytes() == b""


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(1, loss=1.0)
    os.truncate(log.path, log.path.stat().st_size - 1)
    log.truncate_after(1)
    log.append(2, loss=2.0)
    assert [record["step"] for record in MetricsLog.read(log.path)] == [1, 2]


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"loss": 1}', ""])
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
        MetricsLog.read(path)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
        MetricsLog(tmp_path).truncate_after(1)
    assert path.read_text().count("\n") == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device that is always full")
def test_a_full_disk_while_logging(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="disk is full"):
        MetricsLog(tmp_path).append(1, loss=1.0)


def test_a_line_that_fits_only_in_part_is_an_error_and_not_a_silent_tear(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append(1, loss=1.0)
    size = log.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append(2, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.stat().st_size == size + 5
    assert [record["step"] for record in MetricsLog.read(log.path)] == [1]
