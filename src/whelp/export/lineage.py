"""What a model was made from: the stages behind it, with their settings and the hashes of all that they read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whelp.models.sources import ALIASES, cached
from whelp.runs.files import read_json, sha256_model
from whelp.runs.manifest import DONE, Run
from whelp.text.formats.lines import BUILTIN, DATABASE, is_of_the_hub

HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")
LICENCE = re.compile(r"^license:\s*([\w.-]+)\s*$", re.M)


@dataclass(frozen=True, slots=True)
class Read:
    """One thing that a stage read."""

    name: str
    source: str
    """A stage of a run, or data or a model by what `source_name` calls it."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Made:
    """One finished stage that had a part in a model."""

    stage: str
    settings: Mapping[str, Any]
    """By dotted name."""
    reads: tuple[Read, ...]
    base: Path
    """The model that it all began with."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a run began with."""

    name: str
    licence: str | None
    """As its card or whelp's list of models says it; None where neither does."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The stages behind a model, the first one first; none where no run of whelp made it."""

    stages: tuple[Made, ...]
    base: Base

    @property
    def system_prompt(self) -> str | None:
        """What stood before every conversation in training."""
        return self.stages[-1].settings.get("system_prompt") if self.stages else None


def lineage(folder: Path) -> Lineage:
    """Of the model in `folder`. Raises `RunError` where the records of its run are damaged."""
    made: dict[Path, Made] = {}
    base = _walk(folder.resolve(), made)
    return Lineage(tuple(made.values()), Base(source_name(str(base)), _licence(base)))


def fingerprint_of(folder: Path) -> str | None:
    """That of the stage which made `folder`; None where none did."""
    return read_json(folder / DONE).get("fingerprint") if folder.is_dir() else None


def source_name(source: str) -> str:
    """An alias, an id of the hub, or data that ship, by their name; of anything else the last part of its path, for where it lay
    is nobody's business."""
    for alias in ALIASES:
        if Path(source).parts[-2:] == cached(alias).parts[-2:]:
            return alias
    if hub := HUB_CACHE.search(source):
        return f"{hub[1]}/{hub[2]}"
    if source.startswith((BUILTIN, DATABASE)) or is_of_the_hub(source):
        return source
    return Path(source).name


def _walk(folder: Path, made: dict[Path, Made]) -> Path:
    """Note the stages behind `folder`, itself last; return the model that they began with."""
    if folder in made:
        return made[folder].base
    parts = read_json(folder / DONE).get("parts")
    if not parts:
        return folder
    paths = Run(folder.parent).manifest().get("inputs", {}).get(folder.name, {})
    base, reads = folder, []
    for name, sha256 in parts["inputs"].items():
        source = paths.get(name, {}).get("path", "not recorded")
        stage = _stage(folder, Path(source), sha256)
        begun_with = _walk(stage, made) if stage else Path(source)
        base = begun_with if name == "model" else base
        reads.append(Read(name, f"the stage {stage.name}" if stage else source_name(source), sha256))
    made[folder] = Made(folder.name, dict(_flat(parts["config"])), tuple(reads), base)
    return base


def _stage(folder: Path, source: Path, sha256: str) -> Path | None:
    """The stage that is meant: of the same run, which may have been moved, by its fingerprint; of another one by its weights."""
    sibling, elsewhere = folder.parent / source.name, source.resolve()
    if fingerprint_of(sibling) == sha256:
        return sibling
    return elsewhere if fingerprint_of(elsewhere) and sha256_model(elsewhere) == sha256 else None


def _licence(base: Path) -> str | None:
    if (model := ALIASES.get(source_name(str(base)))) is not None:
        return model.licence.lower()
    if not (base / "README.md").is_file():
        return None
    head = (base / "README.md").read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
    found = LICENCE.search(head)
    return found[1].lower() if found else None


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
