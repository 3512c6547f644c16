"""`whelp serve`: models behind OpenAI's API."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated

import typer

from whelp.cli.annotate import Port
from whelp.cli.base import LOOK_PANEL, SystemPrompt, name_models, trained_model

KEY = "WHELP_API_KEY"
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[NAME=]MODEL",
        help="A folder, hub id or alias, and what requests call it. Repeat to serve several.",
        show_default=False,
    ),
]
Host = Annotated[
    str, typer.Option("--host", help=f"The address to listen on; others than this machine need a key in {KEY}.")
]
UsualLimit = Annotated[
    int, typer.Option("--max_new_tokens", min=1, help="Longest answer in tokens where a request names no limit.")
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_PANEL)(serve)


def serve(
    model: Models = None,
    max_new_tokens: UsualLimit = 256,
    system_prompt: SystemPrompt = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Answer requests in OpenAI's chat format. Without --model: the default run's. Ctrl-C ends it.

    \b
    whelp serve                                          http://127.0.0.1:8000/v1
    whelp serve --model before=runs/a/sft --model after=runs/a/ppo
    WHELP_API_KEY=... whelp serve --host 0.0.0.0         for other machines
    """
    from whelp.errors import ConfigError
    from whelp.progress import make_progress

    try:
        import uvicorn

        from whelp.serve.app import create_app
        from whelp.serve.service import Service
        from whelp.web.security import LOCAL_NAMES
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'whelp[web]'") from error
    key, is_local = os.environ.get(KEY) or None, host in LOCAL_NAMES or host == "::1"
    if key is None and not is_local:
        raise ConfigError(
            f"--host {host} lets other machines in, and there is no key; set {KEY} to one that they must know."
        )
    named = name_models(model or [trained_model(None)])
    from whelp.conversation import Speaker

    make_progress().say(f"loading {', '.join(named)}")
    models = {name: Speaker(source, system_prompt=system_prompt) for name, source in named.items()}
    service = Service(models, max_new_tokens)
    app = create_app(service, LOCAL_NAMES if is_local else None, key)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning"))
    service.is_ending = lambda: server.should_exit
    typer.echo(f"{', '.join(named)} at http://{host}:{port}/v1 (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt):
        server.run()
