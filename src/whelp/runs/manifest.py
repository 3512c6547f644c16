"""What a run is, from what and by which command; which of its stages are done and still hold."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, final

from whelp import __version__
from whelp.errors import RunError
from whelp.runs.checkpoint import checkpoints
from whelp.runs.files import as_run_error, canonical_json, plain, read_json, sha256_json, write_json_atomic

REPORT = "report.html"
STARTED, DONE, MANIFEST, TRAINING_PROMPTS = "STARTED.json", "DONE.json", "manifest.json", "training_prompts.json"


def kind_of(stage: str) -> str:
    """What a stage does, whatever its round: `ppo` of `ppo-2`."""
    return stage.partition("-")[0]


@final
@dataclass(frozen=True, slots=True)
class StageState:
    """Where a stage stands, for the configuration and inputs that were asked about.

    done: finished with the same; changed: finished with others, named in `why`; partial: begun with the same and to be
    resumed; new: nothing to build on (`why` names the differences where something begun will be thrown away).
    """

    kind: Literal["done", "changed", "partial", "new"]
    why: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder. Methods that write expect the caller to hold its `RunLock`."""

    path: Path

    def stage_dir(self, name: str) -> Path:
        return self.path / name

    def manifest(self) -> dict[str, Any]:
        """Raises RunError where manifest.json is damaged."""
        return read_json(self.path / MANIFEST)

    def record_inputs(self, stage: str, inputs: Mapping[str, Mapping[str, Any]]) -> None:
        """Note in the manifest what a stage reads: `{name: {"path": ..., "sha256": ..., ...}}`."""
        manifest = self.manifest()
        manifest.setdefault("inputs", {})[stage] = inputs
        write_json_atomic(self.path / MANIFEST, manifest)

    def record_training_prompts(self, stage: str, hashes: Iterable[str]) -> None:
        """Note which prompts a stage trains on, in place of what it noted before."""
        recorded = read_json(self.path / TRAINING_PROMPTS)
        write_json_atomic(self.path / TRAINING_PROMPTS, recorded | {stage: sorted(set(hashes))})

    def training_prompts(self, *kinds: str) -> set[str]:
        """The hashes of all prompts that any stage of the run trained on, or any of some names or kinds."""
        recorded = read_json(self.path / TRAINING_PROMPTS)
        return set().union(
            *(hashes for stage, hashes in recorded.items() if not kinds or {stage, kind_of(stage)} & {*kinds})
        )

    def stage_state(self, stage: str, parts: Mapping[str, Any]) -> StageState:
        """Compare a stage's folder with the `fingerprint_parts` that are wanted now.

        Raises:
            RunError: STARTED.json or DONE.json of the stage is damaged.
        """
        folder = self.stage_dir(stage)
        done, started = read_json(folder / DONE), read_json(folder / STARTED)
        if done:
            why = differences(done.get("parts", {}), parts)
            return StageState("changed", why) if why else StageState("done")
        if started:
            why = differences(started.get("parts", {}), parts)
            if why:
                return StageState("new", why)
            if checkpoints(folder) or (folder / "metrics.jsonl").exists():
                return StageState("partial")
        return StageState("new")

    def start_stage(self, stage: str, parts: Mapping[str, Any]) -> Path:
        """Make the stage's folder ready and return it: what was made with other parts is removed, with the same kept.

        Raises:
            RunError: the folder holds files that no stage of whelp began, which are never removed.
        """
        folder = self.stage_dir(stage)
        with as_run_error(folder):
            for trash in self.path.glob(f"{stage}.trash-*"):
                shutil.rmtree(trash)
            started = read_json(folder / STARTED)
            if started and not differences(started.get("parts", {}), parts):
                (folder / DONE).unlink(missing_ok=True)
                return folder
            if not started:
                _refuse_foreign(folder)
            if folder.exists():
                # Renamed first: a kill while deleting must not leave half a stage under its name.
                trash = folder.with_name(f"{stage}.trash-{os.getpid()}")
                os.rename(folder, trash)
                shutil.rmtree(trash)
            folder.mkdir(parents=True)
        write_json_atomic(folder / STARTED, _signed(parts) | {"started": _now()})
        return folder

    def finish_stage(self, stage: str, fingerprint: str, result: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
        """Write the stage's metrics.json (`result`), then DONE.json; only the second makes it finished.

        `cost` holds `seconds` and `peak_memory_mb` (see `whelp.runs.cost.measure`), and may say where they were spent.

        Raises:
            RunError: the stage was not started with this fingerprint.
        """
        folder = self.stage_dir(stage)
        started = read_json(folder / STARTED)
        if started.get("fingerprint") != fingerprint:
            raise RunError(
                f"{folder} was begun with fingerprint {started.get('fingerprint')} and is to be finished with "
                f"{fingerprint}: something changed it on the way. Run the stage again."
            )
        write_json_atomic(folder / "metrics.json", result)
        done = {"fingerprint": fingerprint, "parts": started["parts"], "cost": cost, "finished": _now()}
        write_json_atomic(folder / DONE, done)


def open_run(path: Path, resolved_recipe: Mapping[str, Any], argv: Sequence[str]) -> Run:
    """Make a run's folder, or open it again, and write its manifest.json.

    The manifest describes the latest command; the time of creation, the recorded inputs and the history of all
    commands are kept.

    Raises:
        RunError: the place cannot be written, or the manifest that lies there is damaged.
    """
    run = Run(Path(path))
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"{run.path} is a file, expected the folder of a run. Choose another run name.")
    before = run.manifest()
    now, command = _now(), shlex.join(argv)
    manifest = {
        "name": run.path.absolute().name,
        "created": before.get("created", now),
        "command": command,
        "whelp": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("torch", "transformers")},
        "platform": platform.platform(),
        "recipe": resolved_recipe,
        "inputs": before.get("inputs", {}),
        "history": [*before.get("history", []), {"at": now, "command": command, "whelp": __version__}],
    }
    write_json_atomic(run.path / MANIFEST, manifest)
    return run


def fingerprint_parts(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that a stage's result depends on.

    `config` holds what the stage reads of the recipe, keyed as there (`{"seed": 0, "ppo": {"kl_coef": 0.05}}`), so that
    a difference is told by the name the user wrote. `inputs` maps a name to the sha256 of what is read.
    """
    return {"stage": stage, "config": config, "inputs": inputs, "whelp": __version__}


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Hex sha256 of the canonical JSON of `fingerprint_parts`, of which whelp's version is one."""
    return sha256_json(fingerprint_parts(stage, config, inputs))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Readable differences of two `fingerprint_parts`; empty exactly when their fingerprints are equal."""
    old, new = dict(_leaves(_normal(before))), dict(_leaves(_normal(now)))
    return tuple(
        _difference(path, old.get(path), new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    )


def _signed(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {"fingerprint": sha256_json(parts), "parts": _normal(parts)}


def _normal(parts: Mapping[str, Any]) -> dict[str, Any]:
    """As the fingerprint sees them, also after a trip through a file."""
    return plain(parts, repr)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, JSON text) of every value that is not itself a filled table. Texts, because 1, 1.0 and True are equal."""
    if isinstance(tree, dict) and (tree or not path):
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, canonical_json(tree)


def _difference(path: tuple[str, ...], old: str | None, new: str | None) -> str:
    kind, name = path[0], ".".join(path[1:])
    if kind == "inputs" and name:
        change = "is new" if old is None else "is gone" if new is None else "changed"
        return f"input {name} {change}"
    name = name if kind == "config" and name else kind
    if old is None:
        return f"{name} is new ({_short(new)})"
    return f"{name} {_short(old)} is gone" if new is None else f"{name} {_short(old)} -> {_short(new)}"


def _short(text: str | None) -> str:
    text = str(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_foreign(folder: Path) -> None:
    """Dot files are left by an interrupted write and may go."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
    if names:
        raise RunError(
            f"{folder} holds {', '.join(names[:3])}{' and more' * (len(names) > 3)} but no {STARTED}: no stage began "
            "it, so it is not removed. Move it away or choose another run name."
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
