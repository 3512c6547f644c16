"""`whelp explain`: the terms of RLHF, and where each stands in this code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whelp.cli.base import LOOK_PANEL

if TYPE_CHECKING:
    from rich.console import Console

    from whelp.glossary import Entry

WIDEST = 100
"""Columns of a terminal that are used: longer lines are hard to read."""

Words = Annotated[
    list[str] | None, typer.Argument(metavar="TERM", help="A name or an alias, such as KL penalty, RM or gae.")
]
Markdown = Annotated[bool, typer.Option("--markdown", hidden=True, help="Print all of docs/terms.md.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_PANEL)(explain)


def explain(term: Words = None, markdown: Markdown = False) -> None:
    """Explain a term of RLHF: what it is here, why to care, its equation, source, settings and code. Without one: list them.

    \b
    whelp explain
    whelp explain KL penalty
    whelp explain gae
    """
    from rich.console import Console

    from whelp import glossary

    console = Console(highlight=False)
    if markdown:
        typer.echo(glossary.page(), nl=False)
    elif term:
        _show(console, glossary.find(" ".join(term)))
    else:
        _list(console)


def _list(console: Console) -> None:
    from whelp.glossary import by_group, entries

    width = max(len(entry.name) for entry in entries())
    for group, found in by_group():
        _say(console, f"\n{group}", style="bold")
        for entry in found:
            _say(console, f"  {entry.name:{width}}  {entry.short}")
    _say(console, "\nwhelp explain TERM says more of one.")


def _show(console: Console, entry: Entry) -> None:
    from whelp.glossary import default_of, place, settings_of

    also = f" (also: {', '.join(entry.aliases)})" if entry.aliases else ""
    _say(console, f"{entry.name}{also}", style="bold")
    _say(console, f"{entry.short}\n", style="dim")
    _say(console, f"{entry.text}\n")
    for line in entry.equation.splitlines():
        _say(console, line, indent=4, style="cyan")
    if entry.no_equation:
        _say(console, f"no equation: {entry.no_equation}", indent=4)
    _say(console, f"\nsource: {entry.source}")
    for setting in settings_of(entry):
        _say(console, f"setting: {setting.key} ({default_of(setting)}): {setting.description}")
    for code in entry.code:
        file, line = place(code)
        _say(console, f"code: {_shown(file)}:{line} {code.partition(':')[2]}")
    _say(console, f"related: {', '.join(entry.related)}")


def _shown(file: Path) -> Path:
    """As one would type it here."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _say(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    """Styled and broken between words on a terminal; else a line as it is."""
    from rich.padding import Padding
    from rich.text import Text

    if console.is_terminal:
        shown = Padding(Text(text, style), (0, 0, 0, indent), expand=False)
        console.print(shown, width=min(WIDEST, console.width))
    else:
        typer.echo(" " * indent + text)
