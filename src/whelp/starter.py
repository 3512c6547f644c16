"""A first recipe for a user's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whelp.config import Recipe
from whelp.errors import ConfigError, DataError
from whelp.settings import to_yaml
from whelp.text.formats import Loaded, read_demonstrations, read_prompts, read_rankings, wanted
from whelp.text.formats.conversations import Problem
from whelp.text.formats.labels import joined
from whelp.text.formats.lines import read_source
from whelp.text.formats.shapes import DEMONSTRATIONS, PROMPTS, RANKINGS, Format, answered


@dataclass(frozen=True, slots=True)
class Kind:
    """What a data file can be good for; the first kind that has the keys of a file's first record is its kind."""

    name: str
    key: str
    """The setting that takes such a file."""
    formats: Sequence[Format[Any]]
    read: Callable[[str], Loaded[Any]]
    substitute: str
    """What is used where no such file is given."""


KINDS = (
    Kind(
        "rankings", "reward.train_file", RANKINGS, read_rankings, "the reward model learns from the built-in rankings"
    ),
    Kind(
        "demonstrations", "sft.train_file", DEMONSTRATIONS, read_demonstrations, "SFT uses the built-in demonstrations"
    ),
    Kind("prompts", "ppo.train_file", PROMPTS, read_prompts, "PPO uses the built-in prompts"),
)


def start(files: Sequence[str], model: str | None, name: str) -> tuple[str, list[str]]:
    """A commented recipe for data files, and what to say about it: what was found, what is missing.

    Raises DataError for a file that cannot be used, ConfigError for two files of one kind.
    """
    found: dict[str, str] = {}
    notes: list[str] = []
    for file in files:
        kind, loaded = _look_at(file)
        if kind.name in found:
            raise ConfigError(f"{found[kind.name]} and {file} both hold {kind.name}; put them into one file.")
        found[kind.name] = file
        duplicates = loaded.counts["duplicates"]
        more = f", {duplicates} duplicates" if duplicates else ""
        notes.append(f"found: {file}: {len(loaded.records)} {kind.name} ({loaded.format}{more})")
    notes += _missing(found)
    return to_yaml(_recipe(found, model, name), header="\n".join(["Written by whelp init.", *notes])), notes


def _look_at(file: str) -> tuple[Kind, Loaded[Any]]:
    """The kind of a file by its first record, and the whole of it read as that kind."""
    source = read_source(file)
    if not source.rows:
        raise DataError(f"{file}: is empty; expected a record a line, for example {{'prompt', 'chosen', 'rejected'}}")
    first = next(iter(joined(source.rows, answered)[0]), source.rows[0])
    if first.problem:
        raise DataError(f"{file}:{first.line}: {first.problem}")
    row = first.value
    fitting = [(kind, form) for kind in KINDS if isinstance(row, dict) for form in kind.formats if form.fits(row)]
    if not fitting:
        keys = ", ".join(row) if isinstance(row, dict) else "no object"
        raise DataError(
            f"{file}:{first.line}: has the keys {keys}; expected {wanted([f for k in KINDS for f in k.formats])}"
        )
    kind, form = fitting[0]
    if kind.name != "rankings":  # conversations of the same keys are demonstrations or prompts by who speaks last
        kind = next((other for other, its in fitting if its.keys == form.keys and _reads(its, row)), kind)
    return kind, kind.read(file)


def _reads(form: Format[Any], row: Mapping[str, Any]) -> bool:
    try:
        form.read(row)
    except Problem:
        return False
    return True


def _missing(found: Mapping[str, str]) -> list[str]:
    notes = []
    for kind in KINDS:
        if kind.name in found:
            continue
        if kind.name == "prompts":
            notes.append(f"missing: prompts; PPO uses those of {next(iter(found.values()))}")
        else:
            notes.append(f"missing: {kind.name}; {kind.substitute}")
    return [*notes, "missing: evaluation prompts; before and after are compared on the built-in ones"]


def _recipe(found: Mapping[str, str], model: str | None, name: str) -> Recipe:
    files = {kind.key: found[kind.name] for kind in KINDS if kind.name in found}
    files.setdefault("ppo.train_file", next(iter(found.values())))
    values: dict[str, Any] = {"output_dir": f"runs/{name}", **({"model": model} if model else {})}
    for key, file in files.items():
        section, _, setting = key.partition(".")
        values[section] = {setting: file}
    return Recipe.model_validate(values)
