"""What a stage took: time and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final


@final
@dataclass
class Cost:
    """Zero until `measure` ends. `dataclasses.asdict` of it is what `Run.finish_stage` takes."""

    seconds: float = 0.0
    """Wall-clock time."""
    peak_memory_mb: float = 0.0
    """The most memory the process ever held (resident, in units of 2**20 bytes), from its start and not only inside
    the block: the system keeps one high-water mark a process."""
    peak_gpu_memory_mb: float = 0.0
    """The most memory that tensors took on a CUDA device, from the start of the process; 0 without one."""


@contextmanager
def measure() -> Iterator[Cost]:
    """`with measure() as cost:` fills `cost` when the block ends, also by an exception."""
    cost = Cost()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        cost.peak_memory_mb = _peak_bytes() / 2**20
        cost.peak_gpu_memory_mb = _peak_gpu_bytes() / 2**20


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


def _peak_gpu_bytes() -> int:
    torch = sys.modules.get("torch")  # never imported for this: it takes seconds
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
