"""Commands that the page starts and that outlive it: each leaves a log and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whelp.errors import RunError
from whelp.runs.files import read_json, write_json_atomic

LAST_LINES = 12
MODULE = "whelp"
Kind = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Job:
    """A command that was started, by name."""

    state: Kind
    log: str
    """Its last lines."""


class Processes:
    """Commands of whelp, one of a name at a time. `folder`: where a folder for each name is made."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.Lock()
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """`whelp ARGUMENTS` in the background. Raises `RunError` where one of that name runs already."""
        with self.lock:
            if (job := self.look(name)) is not None and job.state == "running":
                raise RunError(f"{name} is running already; wait until it has ended.")
            self._file(name, "log").parent.mkdir(parents=True, exist_ok=True)
            with open(self._file(name, "log"), "wb") as log:
                record = self._file(name, "json")
                write_json_atomic(record, {})
                self.started[name] = subprocess.Popen(
                    [sys.executable, "-m", __name__, MODULE, str(record), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    start_new_session=True,  # whoever stops the server does not stop the training
                )
            threading.Thread(target=self.started[name].wait, daemon=True).start()  # or it stays a zombie

    def look(self, name: str) -> Job | None:
        """None: none of that name was ever started."""
        if not self._file(name, "json").is_file():
            return None
        log = self._file(name, "log").read_text(errors="replace").replace("\r", "\n")
        return Job(self._state(name), "\n".join(log.strip().splitlines()[-LAST_LINES:]))

    def _state(self, name: str) -> Kind:
        own = self.started.get(name)
        is_over = own is not None and own.poll() is not None
        record = read_json(self._file(name, "json"))
        if "code" in record:
            return "failed" if record["code"] else "done"
        if own is not None:
            return "failed" if is_over else "running"
        try:  # started by a server that is no more
            os.kill(record["pid"], 0)
        except (KeyError, OSError):
            return "failed"
        return "running"

    def _file(self, name: str, ending: str) -> Path:
        return self.folder / name / f"process.{ending}"


def main(module: str, record: str, *arguments: str) -> None:
    """Run a command and write down how it ended, whether the server that started it still runs or not."""
    file, known = Path(record), {"pid": os.getpid()}
    write_json_atomic(file, known)
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    write_json_atomic(file, known | {"code": code})


if __name__ == "__main__":
    main(*sys.argv[1:])
