"""`whelp sample` and `whelp chat`."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whelp.cli.base import (
    DEFAULT_RUN,
    LOOK_PANEL,
    MaxNewTokens,
    ModelSource,
    Seed,
    SystemPrompt,
    Temperature,
    compared_models,
    trained_model,
)
from whelp.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

PromptTexts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to ask.")]
ChatModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="[NAME=]MODEL",
        help="A local folder, a hub id or an alias; with --compare a run's folder, or several models.",
        show_default=False,
    ),
]
Compare = Annotated[bool, typer.Option("--compare", help="Several models answer side by side.")]
Count = Annotated[int, typer.Option("--n", min=1, help="Answers to each prompt.")]


def register(app: typer.Typer) -> None:
    for command in (chat, sample):
        app.command(rich_help_panel=LOOK_PANEL)(command)


def sample(
    prompt: PromptTexts,
    model: ModelSource = None,
    n: Count = 1,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 96,
    seed: Seed = 0,
    system_prompt: SystemPrompt = None,
) -> None:
    """Print a model's answers to prompts. Without --model: the default run's.

    \b
    whelp sample "2+2=5, right?"
    whelp sample --model runs/assistant/sft --n 4 "Are you conscious?" "Explain tides"
    """
    from whelp import pipeline

    answers = pipeline.sample(
        trained_model(model),
        prompt,
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        system_prompt=system_prompt,
    )
    for text, answer in answers:
        typer.echo(f"> {text}\n{_harmless(answer)}\n")


def chat(
    model: ChatModels = None,
    compare: Compare = False,
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    system_prompt: SystemPrompt = None,
) -> None:
    """Talk with a model, or with several at once. Without --model: the default run's. Ends at an empty line or Ctrl-D.

    \b
    whelp chat
    whelp chat --model runs/assistant/sft --system_prompt "You are brief."
    whelp chat --compare                                 the default run: base, sft and rlhf side by side
    whelp chat --compare --model runs/mine               another run's
    whelp chat --compare --model a/ppo --model b/ppo     any models
    """
    from whelp.conversation import ChatSession, SideBySide
    from whelp.engines.base import SamplingParams

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no UTF-8 becomes a question mark, not a traceback
    params = SamplingParams(1, temperature, max_new_tokens, ("chat", seed))
    if compare:
        several = SideBySide(_compared(model or []), params, system_prompt)
        while text := _ask():
            _side_by_side(several.reply(text), several.sessions)
        return
    if model and len(model) > 1:
        raise ConfigError(f"--model was given {len(model)} times; add --compare to talk with all of them.")
    session = ChatSession(trained_model(model[0] if model else None), params, system_prompt)
    while text := _ask():
        for piece in session.reply(text):
            typer.echo(_harmless(piece), nl=False)
        typer.echo("\n")


def _compared(given: Sequence[str]) -> dict[str, str]:
    """The models that are named, or those of a run."""
    return compared_models(given if len(given) > 1 else (), Path(given[0] if given else DEFAULT_RUN))


def _side_by_side(pieces: Iterable[tuple[str, str]], names: Iterable[str]) -> None:
    """In columns that grow on a terminal, else one answer after the other."""
    from rich.console import Console
    from rich.live import Live

    console, said = Console(highlight=False), dict.fromkeys(names, "")
    if not console.is_terminal:
        for name, piece in pieces:
            said[name] += _harmless(piece)
        typer.echo("".join(f"{name}: {text}\n\n" for name, text in said.items()), nl=False)
        return
    with Live(_columns(said), console=console, vertical_overflow="visible") as live:
        for name, piece in pieces:
            said[name] += _harmless(piece)
            live.update(_columns(said))


def _columns(said: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for name in said:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*map(Text, said.values()))
    return table


def _harmless(text: str) -> str:
    """Without what a terminal would obey."""
    return CONTROLS.sub("", text)


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
