"""One process a run: two that write the same checkpoints would destroy both."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from whelp.errors import RunError
from whelp.runs.files import as_run_error, encode


@final
class RunLock:
    """Context manager that holds `<run>/.lock` for this process; makes the run's folder if needed.

    The kernel drops the lock with the process, so the file of a killed one is no obstacle. The file itself stays:
    removing it would let two processes hold two different files of the same name.

    Raises:
        RunError: another process holds the run (its pid and command are named), or the place cannot be locked.
    """

    def __init__(self, run: Path, command: str | None = None) -> None:
        self.path = Path(run) / ".lock"
        self.command = shlex.join(sys.argv) if command is None else command
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        with as_run_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor)
            holder = {"pid": os.getpid(), "command": self.command, "host": socket.gethostname()}
            with as_run_error(self.path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, encode(json.dumps(holder, ensure_ascii=False)))
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(_in_use(self.path.parent, _holder(descriptor))) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise RunError(
                f"The file system of {self.path.parent} has no locks, which keep two processes from writing one run. "
                "Put the run on a local disk."
            ) from error


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 1 << 20, 0))
    except ValueError:  # taken this very moment, and not yet signed
        return {}
    return holder if isinstance(holder, dict) else {}


def _in_use(run: Path, holder: dict[str, Any]) -> str:
    way_out = "Wait until it ends, or choose another run name."
    if "pid" not in holder:
        return f"The run {run} is in use by another process. {way_out}"
    host = holder.get("host")
    if host == socket.gethostname():
        way_out = f"Wait until it ends, stop it with `kill {holder['pid']}`, or choose another run name."
        host = None
    where = f" on {host}" if host else ""
    return f"The run {run} is in use by process {holder['pid']}{where}: `{holder.get('command', '?')}`. {way_out}"
