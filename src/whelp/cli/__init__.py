"""The command line. Nothing imports it, and it imports torch, pydantic and the rest only inside a command's body."""

from __future__ import annotations

from typing import Annotated

import typer

from whelp import __version__
from whelp.cli import (
    annotate,
    audit,
    bench,
    constitution,
    data,
    doctor,
    evaluate,
    explain,
    export,
    playground,
    recipes,
    runs,
    serve,
    stages,
    talk,
)
from whelp.cli.base import Commands

app = typer.Typer(
    name="whelp",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("-", "_"),
    },
)
for group in (
    runs,
    stages,
    constitution,
    evaluate,
    audit,
    talk,
    playground,
    explain,
    serve,
    export,
    recipes,
    data,
    annotate,
    doctor,
    bench,
):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"whelp {__version__}")
        raise typer.Exit


@app.callback()
def whelp(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Raise a raw language model into a helpful, honest and harmless assistant: SFT, reward model, PPO, evaluation.

    \b
    whelp run                       all of it on a small model
    whelp run smoke                 the same, as short as possible (3 minutes)
    whelp chat                      talk with the result
    whelp init --data pairs.jsonl   a recipe for your own data

    Any setting can be given by its dotted name: [bold]whelp run ppo.kl_coef=0.1[/bold].
    Options and keys take - and _ alike.
    """


def main() -> None:
    """The `whelp` command."""
    from whelp.engines import launch

    launch.run(lambda: app(prog_name="whelp"))
