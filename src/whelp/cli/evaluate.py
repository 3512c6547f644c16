"""`whelp evaluate`: models side by side on prompts that trained nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from whelp.cli import show
from whelp.cli.base import LOOK_PANEL, OutputDir, Overrides, Resume, StageCommand, name_models, recipe_of

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A folder, hub id or alias, or openai:MODEL, anthropic:MODEL or http://host/v1#MODEL; NAME=MODEL names it. Repeat "
        "to compare.",
    ),
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="A data file, a hub id or builtin:<name>.", show_default=False),
]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="JUDGE",
        help="Who compares the answers: a reward model, a model behind an address, or people's rankings (a file or db:PROJECT). "
        "Repeat for more.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command(cls=StageCommand, rich_help_panel=LOOK_PANEL)(evaluate)


def evaluate(
    ctx: typer.Context,
    model: Models,
    overrides: Overrides = None,
    prompts: PromptsFile = None,
    output_dir: OutputDir = None,
    judge: Judges = None,
    resume: Resume = False,
) -> None:
    """Let models answer the same prompts, check the answers and compare. Every completion is written.

    \b
    whelp evaluate --model out/ppo --prompts p.jsonl
    whelp evaluate --model before=out/sft --model after=out/ppo --judge other/reward
    whelp evaluate --model out/ppo --model openai:gpt-4o-mini --judge anthropic:claude-sonnet-4-5
    """
    judges = json.dumps(judge) if judge else None
    options = {"evaluate.prompts": prompts, "evaluate.judges": judges, "output_dir": output_dir}
    recipe = recipe_of(None, overrides, options, ("evaluate",))
    named = name_models(model)
    from whelp import pipeline
    from whelp.progress import make_progress

    found = pipeline.evaluate_models(recipe, named, argv=ctx.obj, resume=resume, progress=make_progress())
    show.summary(found, "evaluate")
