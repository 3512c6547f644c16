"""One side of a race: a process that works when it is told to, and says what it did. Both sides import this; plain Python."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
SAVE = "save "


def asked() -> tuple[dict[str, Any], dict[str, Any]]:
    """What is to be done, and with which settings: `python SCRIPT WORK SIDE`."""
    return json.loads(Path(sys.argv[1]).read_text()), json.loads(sys.argv[2])


class Turns:
    """Waits for its turn on standard input and answers on standard output; whatever a library prints goes to standard error."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began = 0.0
        self.save: Callable[[Path], object] = lambda folder: None
        """Writes the model that learns into a folder, where there is one."""

    def wait(self) -> None:
        """Until the next turn, writing the model where that is asked in between; ends the process where there is no next."""
        while (word := sys.stdin.readline().strip()).startswith(SAVE):
            self.save(Path(word.removeprefix(SAVE)))
            self._say(saved=True)
        if word != "go":
            self._say(peak_mb=peak_mb(), device_peak_mb=device_peak_mb(), versions=versions())
            raise SystemExit
        self.began = time.perf_counter()

    def done(self, **counts: Any) -> None:
        """What was done since `wait`."""
        self._say(seconds=time.perf_counter() - self.began, **counts)

    def _say(self, **what: Any) -> None:
        print(json.dumps(what), file=self.answers, flush=True)


def peak_mb() -> float:
    """Of this process alone: what `getrusage` says on Linux begins with the peak of the process that started it."""
    if STATUS.exists():
        return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def device_peak_mb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 1024**2 if torch.cuda.is_available() else 0.0


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "trl", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
