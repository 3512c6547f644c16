"""Checkpoints that are whole or absent: written beside and renamed, with the hash of every file.

All functions but `checkpoints` and `checkpoint_step` change the folder: call them while holding the `RunLock`.

Names in a stage's folder, and what a kill may leave there:
    checkpoint-N             whole
    checkpoint-N.tmp-<pid>   being written: removed
    checkpoint-N.old-<pid>   replaced by a new checkpoint-N: renamed back if that never came, else removed
    checkpoint-N.trash-<pid> being deleted: removed
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from whelp.runs.files import as_run_error, fsync, sha256_file, write_json_atomic

HASHES = "hashes.json"
_WHOLE = re.compile(r"checkpoint-(\d+)")
_LEFTOVER = re.compile(r"(checkpoint-\d+)\.(tmp|old|trash)-\d+")


def save_checkpoint(stage_dir: Path, step: int, write: Callable[[Path], None], save_total_limit: int) -> Path:
    """Fill `checkpoint-<step>` through `write(folder)`, then delete the oldest beyond `save_total_limit`.

    The new one is never deleted, so at least one stays. Checkpoints of later steps are deleted: they belong to a
    history that was given up when the run went back to an earlier one. Log the metrics of `step` before the call:
    the stage's `*.jsonl` reach the disk no later than the checkpoint.

    Raises:
        RunError: the disk is full or may not be written; the checkpoints before are untouched.
    """
    final = stage_dir / f"checkpoint-{step}"
    temporary = _aside(final, "tmp")
    try:
        with as_run_error(final):
            stage_dir.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(stage_dir)
            temporary.mkdir()
            write(temporary)
            _seal(temporary)
            for log in stage_dir.glob("*.jsonl"):
                fsync(log)
            _put_in_place(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with as_run_error(stage_dir):
        _delete_older(final, save_total_limit)
    return final


def latest_checkpoint(stage_dir: Path, on_damage: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as they were saved, or None; removes what a kill left half done.

    Each newer one that is damaged is passed over, and `on_damage` is told which file of it is wrong and how.
    """
    with as_run_error(stage_dir):
        _remove_leftovers(stage_dir)
    for folder in reversed(checkpoints(stage_dir)):
        damage = _damage(folder)
        if damage is None:
            return folder
        on_damage(f"The checkpoint {folder} is damaged and is not used: {damage}.")
    return None


def checkpoints(stage_dir: Path) -> list[Path]:
    """All checkpoints of a stage, oldest step first, not yet verified; [] when the stage has no folder."""
    if not stage_dir.is_dir():
        return []
    return sorted((path for path in stage_dir.iterdir() if _WHOLE.fullmatch(path.name)), key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """N of `checkpoint-N`."""
    match = _WHOLE.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match[1])


def _aside(checkpoint: Path, kind: str) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.{kind}-{os.getpid()}")


def _files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` but its own hashes, by relative name."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    found.pop(HASHES, None)
    return dict(sorted(found.items()))


def _seal(folder: Path) -> None:
    """Hash every file and bring all of it to the disk, so that the rename that follows cannot get there first."""
    hashes = {}
    for name, path in _files(folder).items():
        hashes[name] = sha256_file(path)
        fsync(path)
    write_json_atomic(folder / HASHES, hashes)
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync(path)


def _put_in_place(temporary: Path, final: Path) -> None:
    old = _aside(final, "old")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        if old.exists():
            os.rename(old, final)
        raise
    fsync(final.parent)
    if old.exists():
        shutil.rmtree(old)


def _delete_older(newest: Path, save_total_limit: int) -> None:
    everything = checkpoints(newest.parent)
    at = everything.index(newest)
    keep = {newest, *everything[max(0, at + 1 - save_total_limit) : at]}
    for folder in everything:
        if folder not in keep:
            trash = _aside(folder, "trash")
            os.rename(folder, trash)
            shutil.rmtree(trash)


def _remove_leftovers(stage_dir: Path) -> None:
    for path in sorted(stage_dir.iterdir()) if stage_dir.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        if match is None:
            continue
        whole = stage_dir / match[1]
        if match[2] == "old" and not whole.exists():
            os.rename(path, whole)
        else:
            shutil.rmtree(path)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, its file named; None when every file is as it was saved."""
    try:
        hashes = json.loads((folder / HASHES).read_bytes())
        found = _files(folder)
    except FileNotFoundError:
        return f"{HASHES} is missing"
    except (OSError, ValueError) as error:
        return f"{HASHES} cannot be read ({error})"
    if not isinstance(hashes, dict):
        return f"{HASHES} is not a table of hashes"
    for name in sorted(hashes.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in hashes:
            return f"{name} was not there when it was saved"
        try:
            if sha256_file(found[name]) != hashes[name]:
                return f"{name} was truncated or altered (its sha256 differs from the one in {HASHES})"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None
