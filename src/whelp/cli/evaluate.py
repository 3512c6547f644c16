"""`whelp evaluate`: models side by side on prompts that trained nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from whelp.cli import show
from whelp.cli.base import LOOK_PANEL, OutputDir, Overrides, Resume, StageCommand, recipe_of
from whelp.errors import ConfigError

Models = Annotated[
    list[str],
    typer.Option("--model", metavar="MODEL", help="A folder, hub id or alias, or NAME=MODEL. Repeat to compare."),
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="A data file, a hub id or builtin:<name>.", show_default=False),
]
JudgeFolder = Annotated[
    str | None,
    typer.Option("--judge", metavar="FOLDER", help="A reward model that compares the answers.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command(cls=StageCommand, rich_help_panel=LOOK_PANEL)(evaluate)


def evaluate(
    ctx: typer.Context,
    model: Models,
    overrides: Overrides = None,
    prompts: PromptsFile = None,
    output_dir: OutputDir = None,
    judge: JudgeFolder = None,
    resume: Resume = False,
) -> None:
    """Let models answer the same prompts, check the answers and compare. Every completion is written.

    \b
    whelp evaluate --model out/ppo --prompts p.jsonl
    whelp evaluate --model before=out/sft --model after=out/ppo --judge other/reward
    """
    options = {"evaluate.prompts": prompts, "output_dir": output_dir}
    recipe = recipe_of(None, overrides, options, ("evaluate",))
    named = name_models(model)
    from whelp import pipeline
    from whelp.progress import make_progress

    found = pipeline.evaluate_models(recipe, named, judge, argv=ctx.obj, resume=resume, progress=make_progress())
    show.summary(found, "evaluate")


def name_models(given: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the one given, else the last part of its path, with the part before where two agree.

    Raises ConfigError where two models end up with one name.
    """
    pairs = [_split(model) for model in given]
    short = [name or Path(source).name or source for name, source in pairs]
    named: dict[str, str] = {}
    for (name, source), base in zip(pairs, short, strict=True):
        label = base if name or short.count(base) == 1 else "-".join(Path(source).parts[-2:])
        if label in named:
            raise ConfigError(f"two models are called {label!r}; name them, for example --model first={source}")
        named[label] = source
    return named


def _split(model: str) -> tuple[str, str]:
    name, equals, source = model.partition("=")
    return (name, source) if equals and "/" not in name else ("", model)
