"""The card of an exported model: what it is, what it was made from, what was measured, and what was not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from whelp import __version__
from whelp.export.lineage import Made, fingerprint_of, lineage
from whelp.progress import rate
from whelp.runs.files import read_json
from whelp.runs.manifest import DONE

if TYPE_CHECKING:
    from jinja2 import Template

MAIN = (
    "seed", "trainable_layers", "reward", "advantage", "learning_rate", "num_train_epochs", "max_steps",
    "per_step_batch_size", "total_episodes", "batch_size", "num_generations", "num_ppo_epochs", "kl_coef", "cliprange",
    "temperature", "response_length", "beta", "judge",
)  # fmt: skip
"""Settings that a card names; the others are in the run's manifest.json."""
SMALL = 3_000_000_000
"""Parameters below which a language model is called a small one."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The run's before/after table, where the model that is exported stands in it."""

    model: str
    """What the table calls it."""
    models: tuple[str, ...]
    prompts: int
    rows: tuple[tuple[str, ...], ...]
    """A category, its number of prompts, and the share of good answers of each model."""


def card(folder: Path, name: str, dtype: str, config: Any, parameters: int, is_reward_model: bool) -> str:
    """README.md of the model in `folder`, exported as `name`; `config` is its configuration. Raises as `lineage` does."""
    found = lineage(folder)
    return _template().render(
        name=name,
        version=__version__,
        dtype=dtype,
        trained_dtype=str(read_json(folder / "config.json").get("dtype", dtype)),
        family=config.model_type,
        parameters=f"{parameters / 1e6:,.1f} million",
        is_small=parameters < SMALL,
        is_reward_model=is_reward_model,
        is_member=bool(getattr(config, "reward_member_shifts", ())),
        reward_shift=getattr(config, "reward_shift", 0.0),
        base=found.base,
        stages=found.stages,
        system_prompt=found.system_prompt,
        settings=_settings(found.stages),
        evaluation=evaluation(folder),
        accuracy=_accuracy(folder) if is_reward_model else None,
    )


def evaluation(folder: Path) -> Evaluation | None:
    """What the run's evaluation says of the model in `folder`; None where it looked at another one or at none."""
    evaluated, mine = folder.resolve().parent / "evaluate", fingerprint_of(folder)
    inputs = read_json(evaluated / DONE).get("parts", {}).get("inputs", {})
    called = next((name for name, made_from in inputs.items() if mine is not None and made_from == mine), None)
    found = read_json(evaluated / "metrics.json")
    models = tuple(found.get("models", ()))
    if called is None or called not in models:
        return None
    suites: dict[str, Any] = {**found["suites"], "all": found["overall"]}
    rows = [
        (name, str(suite[called]["greedy"]["n"]), *(rate(suite[m]["greedy"]) for m in models))
        for name, suite in suites.items()
    ]
    return Evaluation(called, models, found["n_prompts"], tuple(rows))


def _accuracy(folder: Path) -> str | None:
    """How often a reward model is right on pairs that it never saw."""
    found = read_json(folder / "metrics.json")
    if not found.get("accuracy_interval"):
        return None
    return f"{rate(found['accuracy_interval'])} of {found['n']:,} pairs"


def _settings(stages: Sequence[Made]) -> list[tuple[str, str, str]]:
    """(stage, setting, value), without what an earlier stage says already; of Python files the folder is left out."""
    rows: dict[tuple[str, str], str] = {}
    for made in stages:
        for key, value in made.settings.items():
            if key.rpartition(".")[2] in MAIN and value is not None:
                rows.setdefault((key, re.sub(r"\S*/(\S+\.py:)", r"\1", str(value))), made.stage)
    return [(stage, key, value) for (key, value), stage in rows.items()]


def cell(text: object) -> str:
    """Text that stays in one cell of a table."""
    return " ".join(str(text).split()).replace("|", r"\|")


@cache
def _template() -> Template:
    loader = PackageLoader("whelp.export", ".")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    environment.filters["cell"] = cell
    return environment.get_template("card.md.jinja")
