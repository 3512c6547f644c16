"""One side of a race: a process that works when it is told to, and says what it did. Both sides import this; plain Python."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

MB = 1024 if sys.platform == "linux" else 1024**2


class Turns:
    """Waits for its turn on standard input and answers on standard output; whatever a library prints goes to standard error."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began = 0.0

    def wait(self) -> None:
        """Until the next turn; ends the process where there is none."""
        if sys.stdin.readline().strip() != "go":
            self._say(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB)
            raise SystemExit
        self.began = time.perf_counter()

    def done(self, **counts: Any) -> None:
        """What was done since `wait`."""
        self._say(seconds=time.perf_counter() - self.began, **counts)

    def _say(self, **what: Any) -> None:
        print(json.dumps(what), file=self.answers, flush=True)
