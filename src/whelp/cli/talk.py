"""`whelp sample` and `whelp chat`."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from whelp.cli.base import (
    LOOK_PANEL,
    MaxNewTokens,
    ModelSource,
    Seed,
    SystemPrompt,
    Temperature,
    trained_model,
)

PromptTexts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to ask.")]
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
        typer.echo(f"> {text}\n{answer}\n")


def chat(
    model: ModelSource = None,
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    system_prompt: SystemPrompt = None,
) -> None:
    """Talk with a model. Without --model: the default run's. Ends at an empty line or Ctrl-D.

    \b
    whelp chat
    whelp chat --model runs/assistant/sft --system_prompt "You are brief."
    """
    from whelp.conversation import ChatSession
    from whelp.engines.base import SamplingParams

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no UTF-8 becomes a question mark, not a traceback
    params = SamplingParams(1, temperature, max_new_tokens, ("chat", seed))
    session = ChatSession(trained_model(model), params, system_prompt)
    while text := _ask():
        for piece in session.reply(text):
            typer.echo(piece, nl=False)
        typer.echo("\n")


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
