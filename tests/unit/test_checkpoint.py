"""Checkpoints survive being killed, a full disk and a damaged file."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import names, run_python, writer

from whelp.errors import RunError
from whelp.runs import checkpoint as checkpoint_module
from whelp.runs.checkpoint import checkpoint_step, checkpoints, latest_checkpoint, save_checkpoint
from whelp.runs.files import read_json
from whelp.runs.metrics import MetricsLog


def no_damage(message: str) -> None:
    raise AssertionError(message)


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
