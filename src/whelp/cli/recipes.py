"""`whelp validate` and `whelp init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whelp.cli.base import PREPARE_PANEL, ModelSource, Overrides, RecipeName, recipe_of
from whelp.errors import ConfigError

DataFiles = Annotated[
    list[str], typer.Option("--data", metavar="FILE", help="Your data: a file or a hub id. Repeat for more.")
]
RecipeFile = Annotated[Path, typer.Option("--output", metavar="FILE", help="The recipe to write.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PREPARE_PANEL)(validate)
    app.command(rich_help_panel=PREPARE_PANEL)(init)


def validate(recipe: RecipeName = None, overrides: Overrides = None) -> None:
    """Check a recipe. Every mistake is named at once, with its line and the nearest key that exists.

    \b
    whelp validate recipe.yaml
    whelp validate smoke ppo.total_episodes=64
    """
    resolved = recipe_of(recipe, overrides, {})
    typer.echo(f"ok: {', '.join(resolved.stages)} on {resolved.model}, written to {resolved.output_dir}")


def init(data: DataFiles, model: ModelSource = None, output: RecipeFile = Path("recipe.yaml")) -> None:
    """Look at your data and write a recipe for it, with every setting explained, and say what is missing.

    \b
    whelp init --data pairs.jsonl
    whelp init --data pairs.jsonl --data demonstrations.jsonl --output mine.yaml
    """
    from whelp.runs.files import as_run_error
    from whelp.starter import start

    if output.exists():
        raise ConfigError(
            f"{output} exists already and is not overwritten; remove it, or name another file with --output."
        )
    text, notes = start(data, model, name=output.stem)
    with as_run_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    for note in notes:
        typer.echo(note)
    typer.echo(f"\nwrote {output}. Next: whelp run {output} --dry_run")
