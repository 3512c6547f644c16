"""Runs survive being killed, a full disk, a damaged file and a second process; and know which stages still hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whelp.errors import RunError, TrainingError
from whelp.runs import checkpoint as checkpoint_module
from whelp.runs import manifest as manifest_module
from whelp.runs.checkpoint import checkpoint_step, checkpoints, latest_checkpoint, save_checkpoint
from whelp.runs.cost import Cost, measure
from whelp.runs.files import (
    as_run_error,
    plain,
    read_json,
    sha256_file,
    sha256_json,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from whelp.runs.lock import RunLock
from whelp.runs.manifest import Run, differences, fingerprint, fingerprint_parts, open_run
from whelp.runs.metrics import MetricsLog

CONFIG = {"seed": 0, "ppo": {"kl_coef": 0.05, "num_ppo_epochs": 2}}
INPUTS = {"reward": "aa", "prompts": "bb"}


def run_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *argv]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.bin").write_text(text * 1000)
        (folder / "policy").mkdir()
        (folder / "policy" / "optimizer.bin").write_text(text)

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def no_damage(message: str) -> None:
    raise AssertionError(message)


def test_runs_import_without_torch() -> None:
    code = """
        import pkgutil, sys, importlib, whelp.runs
        for module in pkgutil.iter_modules(whelp.runs.__path__):
            importlib.import_module(f"whelp.runs.{module.name}")
        print(len([name for name in sys.modules if name.startswith("whelp.runs.")]), "torch" in sys.modules)
    """
    done = run_python(code)
    count, has_torch = done.stdout.split()
    assert int(count) >= 5 and has_torch == "False", done.stderr


# Files


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": [2, "é\u2028"]})
    assert json.loads(path.read_text("utf-8")) == {"a": [2, "é\u2028"]}
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="broken"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_object_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_json_atomic(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_json_is_strict_whatever_the_values(tmp_path: Path) -> None:
    obj = {
        "nan": float("nan"),
        "inf": [np.float32("inf"), -np.inf],
        "numpy": np.arange(3),
        "bool": np.bool_(True),
        "path": Path("a/b"),
        "set": {"b", "a"},
        "cost": Cost(1.5, 2.0),
        1: (1, 2),
        "surrogate": "\ud800",
    }
    write_json_atomic(tmp_path / "a.json", obj)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "a.json").read_bytes(), parse_constant=refuse) == {
        "nan": None,
        "inf": [None, None],
        "numpy": [0, 1, 2],
        "bool": True,
        "path": "a/b",
        "set": ["a", "b"],
        "cost": {"seconds": 1.5, "peak_memory_mb": 2.0},
        "1": [1, 2],
        "surrogate": "\ud800",
    }


def test_read_json_names_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(RunError, match="expected an object"):
        read_json(tmp_path / "a.json")
    assert read_json(tmp_path / "none.json") == {}


def test_hashes_are_those_of_sha256sum_and_of_known_vectors(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": 1, "a": [True, None]}) == hashlib.sha256(b'{"a":[true,null],"b":1}').hexdigest()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    different = [1, 1.0, True, "1", None, float("nan"), float("inf"), float("-inf")]
    assert len({sha256_json(value) for value in different}) == len(different)


FULL_DISK_ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("error", FULL_DISK_ERRORS, ids=lambda error: str(error)[:20])
def test_a_full_disk_says_where_how_much_and_that_nothing_is_lost(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "no" / "such" / "folder" / "a.bin"
    with pytest.raises(RunError) as caught, as_run_error(path):
        raise error
    message = str(caught.value)
    assert str(path) in message and "bytes are free" in message and "Nothing earlier was lost" in message


def test_a_full_disk_is_found_behind_another_exception(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="disk is full"), as_run_error(tmp_path):  # noqa: PT012
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise ValueError("cannot close") from None


def test_a_forbidden_place_is_told_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Make the folder writable"), as_run_error(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    for error in (ValueError("a bug"), TrainingError("a NaN"), OSError(errno.EIO, "broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, as_run_error(tmp_path):
            raise error
        assert caught.value is error


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(10, 9, 1234)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(RunError, match=r"1,234 bytes are free"), as_run_error(tmp_path / "a" / "b"):
        raise OSError(errno.ENOSPC, "full")
    assert asked == [tmp_path]


# Lock


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


# Checkpoints


def test_checkpoints_are_sealed_ordered_by_step_and_limited(tmp_path: Path) -> None:
    stage = tmp_path / "ppo"
    for step in (8, 9, 10, 100):
        saved = save_checkpoint(stage, step, writer(f"{step}"), save_total_limit=2)
        assert saved == stage / f"checkpoint-{step}"
    assert names(stage) == ["checkpoint-10", "checkpoint-100"]
    assert [checkpoint_step(path) for path in checkpoints(stage)] == [10, 100]
    assert read_json(saved / "hashes.json") == {
        "model.bin": hashlib.sha256(b"100" * 1000).hexdigest(),
        "policy/optimizer.bin": hashlib.sha256(b"100").hexdigest(),
    }
    assert latest_checkpoint(stage, no_damage) == saved
    assert latest_checkpoint(tmp_path / "none", no_damage) is None


@pytest.mark.parametrize("limit", [0, 1])
def test_the_newest_checkpoint_is_never_deleted(tmp_path: Path, limit: int) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, writer("x"), limit)
    assert names(tmp_path) == ["checkpoint-2"]


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.bin", 10)


def alter(folder: Path) -> None:
    data = bytearray((folder / "policy" / "optimizer.bin").read_bytes())
    data[0] ^= 1
    (folder / "policy" / "optimizer.bin").write_bytes(data)


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, "model.bin was truncated or altered"),
    (alter, "policy/optimizer.bin was truncated or altered"),
    (lambda folder: (folder / "model.bin").unlink(), "model.bin is missing"),
    (lambda folder: (folder / "policy" / "more.bin").write_text(""), "policy/more.bin was not there"),
    (lambda folder: (folder / "hashes.json").unlink(), "hashes.json is missing"),
    (lambda folder: os.truncate(folder / "hashes.json", 9), "hashes.json cannot be read"),
    (lambda folder: (folder / "hashes.json").write_text("[]"), "hashes.json is not a table"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    good = save_checkpoint(tmp_path, 1, writer("a"), 3)
    bad = save_checkpoint(tmp_path, 2, writer("b"), 3)
    damage(bad)
    told: list[str] = []
    assert latest_checkpoint(tmp_path, told.append) == good
    assert len(told) == 1 and str(bad) in told[0] and said in told[0]
    truncate(good)
    told.clear()
    assert latest_checkpoint(tmp_path, told.append) is None
    assert len(told) == 2


def test_going_back_past_a_damaged_checkpoint_gives_up_the_later_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, writer("a"), 2)
    truncate(save_checkpoint(tmp_path, 20, writer("b"), 2))
    save_checkpoint(tmp_path, 15, writer("c"), 1)
    assert names(tmp_path) == ["checkpoint-15"]


def test_a_checkpoint_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, writer("old"), 2)
    saved = save_checkpoint(tmp_path, 5, writer("new"), 2)
    assert latest_checkpoint(tmp_path, no_damage) == saved
    assert (saved / "policy" / "optimizer.bin").read_text() == "new"
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr)
def test_a_failing_write_leaves_the_checkpoints_as_they_were(tmp_path: Path, error: BaseException) -> None:
    before = save_checkpoint(tmp_path, 5, writer("old"), 1)

    def fail(folder: Path) -> None:
        writer("new")(folder)
        raise error

    for step in (5, 6):
        with pytest.raises(RunError if isinstance(error, OSError) else type(error)):
            save_checkpoint(tmp_path, step, fail, 1)
        assert latest_checkpoint(tmp_path, no_damage) == before
        assert (before / "policy" / "optimizer.bin").read_text() == "old"
        assert names(tmp_path) == ["checkpoint-5"]


def test_a_failing_rename_brings_the_old_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save_checkpoint(tmp_path, 5, writer("old"), 1)
    rename = os.rename

    def fail_on_new(source: Path, target: Path) -> None:
        if ".tmp-" in Path(source).name:
            raise OSError(errno.ENOSPC, "full")
        rename(source, target)

    monkeypatch.setattr(checkpoint_module.os, "rename", fail_on_new)
    with pytest.raises(RunError, match="checkpoint-5"):
        save_checkpoint(tmp_path, 5, writer("new"), 1)
    assert (before / "policy" / "optimizer.bin").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-5"]


def test_the_logs_reach_the_disk_before_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []

    def fsync(path: Path) -> None:
        assert path == tmp_path or not (tmp_path / "checkpoint-1").exists()
        synced.append(path)

    MetricsLog(tmp_path).append(1, loss=0.5)
    monkeypatch.setattr(checkpoint_module, "fsync", fsync)
    save_checkpoint(tmp_path, 1, writer("x"), 1)
    assert tmp_path / "metrics.jsonl" in synced
    assert synced[-1] == tmp_path


def test_sigkill_between_the_write_and_the_rename(tmp_path: Path) -> None:
    before = save_checkpoint(tmp_path, 1, writer("old"), 2)
    code = """
        import os, signal, sys
        from pathlib import Path
        from whelp.runs import checkpoint

        checkpoint.os.rename = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        write = lambda folder: (folder / "model.bin").write_text("new")
        checkpoint.save_checkpoint(Path(sys.argv[1]), 2, write, 2)
    """
    assert run_python(code, str(tmp_path)).returncode == -9
    left = [path for path in tmp_path.iterdir() if path.name.startswith("checkpoint-2.tmp-")]
    assert len(left) == 1 and names(left[0]) == ["hashes.json", "model.bin"]
    assert latest_checkpoint(tmp_path, no_damage) == before
    assert names(tmp_path) == ["checkpoint-1"]


KILL_AT_EVERY_CALL = """
    # Saves a checkpoint in a child that is killed at its n-th call to the file system, for every n until one survives.
    import os, shutil, signal, sys
    from pathlib import Path
    from whelp.runs.checkpoint import latest_checkpoint, save_checkpoint

    def write(text):
        def fill(folder):
            (folder / "policy").mkdir()
            (folder / "policy" / "model.bin").write_text(text)
        return fill

    def child(stage, step, nth):
        calls = 0
        def count(event, args):
            nonlocal calls
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"):
                calls += 1
                if calls == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        save_checkpoint(stage, step, write("new"), 1)
        os._exit(0)

    root, step = Path(sys.argv[1]), int(sys.argv[2])
    outcomes = []
    for nth in range(1, 1000):
        stage = root / f"stage-{nth}"
        save_checkpoint(stage, 1, write("old"), 1)
        pid = os.fork()
        if pid == 0:
            child(stage, step, nth)
        survived = os.waitpid(pid, 0)[1] == 0
        damages = []
        latest = latest_checkpoint(stage, damages.append)
        text = (latest / "policy" / "model.bin").read_text()
        assert not damages, damages
        assert latest.name == ("checkpoint-1" if text == "old" else f"checkpoint-{step}"), latest
        assert all(name in ("checkpoint-1", latest.name) for name in os.listdir(stage)), os.listdir(stage)
        outcomes.append(text)
        shutil.rmtree(latest)
        latest_checkpoint(stage, damages.append)
        assert not damages, damages
        if survived:
            break
    print(survived, *outcomes)
"""


@pytest.mark.parametrize("step", [1, 2], ids=["replacing", "adding"])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_checkpoint_whole(tmp_path: Path, step: int) -> None:
    done = run_python(KILL_AT_EVERY_CALL, str(tmp_path), str(step))
    assert done.returncode == 0, done.stderr
    survived, *outcomes = done.stdout.split()
    assert survived == "True" and len(outcomes) > 10
    assert set(outcomes) == {"old", "new"}
    assert outcomes == sorted(outcomes, reverse=True), (
        "once the new one stands, a later kill must not bring the old back"
    )


# Metrics


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


# Manifest and stages


def parts(config: dict[str, Any] = CONFIG, inputs: dict[str, str] = INPUTS) -> dict[str, Any]:
    return fingerprint_parts("ppo", config, inputs)


def new_run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "first", CONFIG, ["whelp", "train"])


def finished(run: Run) -> None:
    run.start_stage("ppo", parts())
    run.finish_stage("ppo", fingerprint("ppo", CONFIG, INPUTS), {"objective/kl": 6.0}, asdict(Cost(1.0, 2.0)))


def test_the_manifest_tells_what_from_what_and_by_which_command(tmp_path: Path) -> None:
    run = open_run(tmp_path / "first", CONFIG, ["whelp", "train", "my recipe.yaml"])
    run.record_inputs("sft", {"demonstrations": {"path": "d.jsonl", "sha256": "aa", "rows": 3}})
    first = run.manifest()
    assert first["name"] == "first" and first["recipe"] == CONFIG
    assert first["command"] == "whelp train 'my recipe.yaml'"
    assert first["python"] == sys.version.split()[0] and first["platform"]
    assert set(first["packages"]) == {"torch", "transformers"}
    again = open_run(tmp_path / "first", {"seed": 1}, ["whelp", "resume"]).manifest()
    assert again["recipe"] == {"seed": 1} and again["command"] == "whelp resume"
    assert again["created"] == first["created"] and again["inputs"] == first["inputs"]
    assert [entry["command"] for entry in again["history"]] == ["whelp train 'my recipe.yaml'", "whelp resume"]


def test_versions_are_those_installed_and_none_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest_module._version("pytest") == pytest.__version__
    assert manifest_module._version("no-package-of-this-name") is None


def test_a_run_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "file", {}, [])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json is not valid JSON"):
        open_run(tmp_path, {}, [])


def test_training_prompts_are_the_union_of_what_the_stages_saw_last(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.training_prompts() == set()
    run.record_training_prompts("sft", iter(["c", "a", "a"]))
    run.record_training_prompts("ppo", ["z"])
    run.record_training_prompts("ppo", ["b", "a"])
    assert read_json(run.path / "training_prompts.json") == {"sft": ["a", "c"], "ppo": ["a", "b"]}
    assert run.training_prompts() == {"a", "b", "c"}


def test_a_stage_goes_from_new_to_partial_to_done(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.stage_state("ppo", parts()).kind == "new"
    folder = run.start_stage("ppo", parts())
    assert folder == run.stage_dir("ppo") == tmp_path / "first" / "ppo"
    assert run.stage_state("ppo", parts()).kind == "new"
    MetricsLog(folder).append(1, loss=1.0)
    assert run.stage_state("ppo", parts()).kind == "partial"
    run.start_stage("ppo", parts())
    assert len(MetricsLog.read(folder / "metrics.jsonl")) == 1, "resuming keeps what is there"
    run.finish_stage("ppo", fingerprint("ppo", CONFIG, INPUTS), {"accuracy": 0.6}, {"seconds": 2.0})
    state = run.stage_state("ppo", parts())
    assert (state.kind, state.why) == ("done", ())
    assert read_json(folder / "metrics.json") == {"accuracy": 0.6}
    done = read_json(folder / "DONE.json")
    assert done["cost"] == {"seconds": 2.0} and done["fingerprint"] == fingerprint("ppo", CONFIG, INPUTS)
    assert done["parts"]["inputs"] == INPUTS


def test_a_checkpoint_alone_makes_a_stage_partial(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    save_checkpoint(run.start_stage("ppo", parts()), 1, writer("x"), 1)
    assert run.stage_state("ppo", parts()).kind == "partial"


def test_a_kill_between_result_and_done_leaves_the_stage_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    MetricsLog(run.start_stage("ppo", parts())).append(1, loss=1.0)

    def killed_at_done(path: Path, obj: Any) -> None:
        if path.name == "DONE.json":
            raise KeyboardInterrupt
        write_json_atomic(path, obj)

    monkeypatch.setattr(manifest_module, "write_json_atomic", killed_at_done)
    with pytest.raises(KeyboardInterrupt):
        finished(run)
    assert (run.stage_dir("ppo") / "metrics.json").exists()
    assert run.stage_state("ppo", parts()).kind == "partial"


def test_starting_a_finished_stage_again_makes_it_unfinished(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    finished(run)
    run.start_stage("ppo", parts())
    assert run.stage_state("ppo", parts()).kind != "done"


CHANGES: list[tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = [
    ({"seed": 0, "ppo": {"kl_coef": 0.1, "num_ppo_epochs": 2}}, INPUTS, ("ppo.kl_coef 0.05 -> 0.1",)),
    (CONFIG, INPUTS | {"reward": "cc"}, ("input reward changed",)),
    (CONFIG, INPUTS | {"judge": "dd"}, ("input judge is new",)),
    (CONFIG, {"reward": "aa"}, ("input prompts is gone",)),
    ({"seed": 0, "ppo": {"kl_coef": 0.05}}, INPUTS, ("ppo.num_ppo_epochs 2 is gone",)),
    (CONFIG | {"model": "smollm"}, INPUTS, ('model is new ("smollm")',)),
    (
        {"seed": 1, "ppo": CONFIG["ppo"]},
        {"reward": "cc"},
        ("seed 0 -> 1", "input prompts is gone", "input reward changed"),
    ),
]


@pytest.mark.parametrize(("config", "inputs", "why"), CHANGES, ids=[why[0] for *_, why in CHANGES])
def test_a_changed_stage_says_what_changed(
    tmp_path: Path, config: dict[str, Any], inputs: dict[str, str], why: tuple[str, ...]
) -> None:
    run = new_run(tmp_path)
    finished(run)
    state = run.stage_state("ppo", parts(config, inputs))
    assert state.kind == "changed"
    assert sorted(state.why) == sorted(why)
    assert fingerprint("ppo", config, inputs) != fingerprint("ppo", CONFIG, INPUTS)


def test_another_version_of_whelp_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    finished(run)
    before = manifest_module.__version__
    monkeypatch.setattr(manifest_module, "__version__", "99.0")
    assert run.stage_state("ppo", parts()).why == (f'whelp "{before}" -> "99.0"',)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "a.b"]), inner, max_size=2),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES, max_size=2)


@given(before=CONFIGS, now=CONFIGS)
@settings(max_examples=200, deadline=None)
def test_there_is_a_difference_to_tell_exactly_when_the_fingerprints_differ(before: Any, now: Any) -> None:
    same = fingerprint("ppo", before, {}) == fingerprint("ppo", now, {})
    assert (differences(parts(before, {}), parts(now, {})) == ()) is same
    through_a_file = json.loads(json.dumps(plain(parts(before, {}), repr)))
    assert differences(through_a_file, parts(before, {})) == ()


def test_infinite_and_missing_settings_are_told_apart_after_a_trip_through_the_file(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.start_stage("ppo", parts({"ppo": {"target_kl": float("inf")}}))
    MetricsLog(run.stage_dir("ppo")).append(1)
    assert run.stage_state("ppo", parts({"ppo": {"target_kl": float("inf")}})).kind == "partial"
    assert run.stage_state("ppo", parts({"ppo": {"target_kl": None}})).why == ('ppo.target_kl "inf" -> null',)


def test_starting_with_other_parts_removes_what_the_old_ones_made(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    folder = run.start_stage("ppo", parts())
    MetricsLog(folder).append(1, loss=1.0)
    (folder / "SCRATCH").mkdir()
    (run.path / "ppo.trash-1").mkdir()
    other = parts(CONFIG | {"seed": 1})
    state = run.stage_state("ppo", other)
    assert (state.kind, state.why) == ("new", ("seed 0 -> 1",))
    run.start_stage("ppo", other)
    assert names(folder) == ["STARTED.json"]
    assert names(run.path) == ["manifest.json", "ppo"]
    assert run.stage_state("ppo", parts()).why == ("seed 1 -> 0",)


def test_what_no_stage_began_is_never_removed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.stage_dir("ppo").mkdir()
    run.start_stage("ppo", parts())
    run.stage_dir("reward").mkdir()
    (run.stage_dir("reward") / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds thesis\.tex but no STARTED\.json"):
        run.start_stage("reward", parts())
    assert (run.stage_dir("reward") / "thesis.tex").read_text() == "years of work"


def test_finishing_what_was_not_started_so_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(RunError, match="fingerprint None"):
        run.finish_stage("ppo", "aa", {}, {})
    run.start_stage("ppo", parts())
    with pytest.raises(RunError, match="Run the stage again"):
        run.finish_stage("ppo", "aa", {}, {})
    assert names(run.stage_dir("ppo")) == ["STARTED.json"]


# Cost


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


def test_write_bytes_atomic_keeps_bytes(tmp_path: Path) -> None:
    data = bytes(range(256))
    write_bytes_atomic(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
