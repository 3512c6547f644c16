"""What a stage costs: its time by the clock, its peak memory by the kernel."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from whelp.runs.cost import measure


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own account of the peak is in /proc")
def test_the_peak_agrees_with_the_kernel_in_units_of_mib() -> None:
    with measure() as cost:
        block = bytearray(b"x") * (64 * 2**20)
    status = Path("/proc/self/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert len(block) == 64 * 2**20
    assert 0.9 * peak_kib / 1024 <= cost.peak_memory_mb
    assert 64 < cost.peak_memory_mb < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


@pytest.mark.parametrize(("system", "maxrss"), [("linux", 512 * 1024), ("darwin", 512 * 2**20)])
def test_the_unit_of_the_peak_depends_on_the_system(monkeypatch: pytest.MonkeyPatch, system: str, maxrss: int) -> None:
    fields = list(resource.getrusage(resource.RUSAGE_SELF))
    fields[2] = maxrss
    usage = resource.struct_rusage(fields)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", system)
    with measure() as cost:
        pass
    assert cost.peak_memory_mb == 512


def test_the_time_is_the_clock_s_and_is_filled_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 102.5])
    monkeypatch.setattr("whelp.runs.cost.time.perf_counter", lambda: next(ticks))
    with pytest.raises(ValueError, match="bug"), measure() as cost:
        raise ValueError("bug")
    assert cost.seconds == 2.5
