"""`whelp playground`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whelp.cli.annotate import Database, Host, Port, opened, run_server
from whelp.cli.base import DEFAULT_RUN, LOOK_PANEL, MaxNewTokens, Temperature, compared_models

RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run whose models answer: base, SFT and trained.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="[NAME=]MODEL", help="Other models instead, two or more.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_PANEL)(playground)


def playground(
    run_dir: RunDir = Path(DEFAULT_RUN),
    model: Models = None,
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 256,
    database: Database = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Open a page on which a run's models answer side by side; which was better is kept as a preference.

    \b
    whelp playground                                     the default run: base, sft and rlhf
    whelp playground runs/mine
    whelp playground --model before=runs/a/sft --model after=runs/a/ppo
    whelp run reward.train_file=db:playground            train on the votes
    """
    models = compared_models(model or (), run_dir)
    from whelp.conversation import Panel
    from whelp.engines.base import SamplingParams
    from whelp.progress import make_progress
    from whelp.web.playground import Playground

    make_progress().say(f"loading {', '.join(models)}")
    panel = Panel(models, SamplingParams(1, temperature, max_new_tokens, ("playground",)))
    with opened(database) as store:
        run_server(store, host, port, "/playground", runs_folder=run_dir.parent, models=Playground(panel, list(models)))
