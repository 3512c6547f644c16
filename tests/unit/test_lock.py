"""A run belongs to one process at a time, and a second one is told to whom."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_helpers import environment

from whelp.errors import RunError
from whelp.runs.lock import RunLock


@contextmanager
def other_process_holding(run: Path) -> Iterator[subprocess.Popen[str]]:
    code = """
        import sys
        from whelp.runs.lock import RunLock
        with RunLock(sys.argv[1], "whelp train 'my recipe.yaml'"):
            print("held", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(run)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with other_process_holding(run) as other:
        with pytest.raises(RunError) as caught, RunLock(run):
            pass
        message = str(caught.value)
        assert str(run) in message and f"process {other.pid}" in message and f"kill {other.pid}" in message
        assert "whelp train 'my recipe.yaml'" in message
        other.kill()
        other.wait()
        # The killed process could not clean up: its name is still in the file.
        assert json.loads((run / ".lock").read_text())["pid"] == other.pid
        with RunLock(run, "mine"):
            holder = json.loads((run / ".lock").read_text())
            assert (holder["pid"], holder["command"]) == (os.getpid(), "mine")
    with RunLock(run):
        pass


def test_a_lock_is_released_by_an_error_and_held_once_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bug"), RunLock(tmp_path):  # noqa: PT012
        with pytest.raises(RunError, match=str(os.getpid())), RunLock(tmp_path):
            pass
        raise ValueError("bug")
    with RunLock(tmp_path):
        pass


def test_a_lock_of_another_host_or_not_yet_signed(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_text(json.dumps({"pid": 7, "command": "whelp run", "host": "elsewhere"}))
        with pytest.raises(RunError, match="process 7 on elsewhere: `whelp run`") as caught, RunLock(tmp_path):
            pass
        assert "kill" not in str(caught.value)
        (tmp_path / ".lock").write_text("")
        with pytest.raises(RunError, match="in use by another process"), RunLock(tmp_path):
            pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(RunError, match="local disk"), RunLock(tmp_path):
        pass
