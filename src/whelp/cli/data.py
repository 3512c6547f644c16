"""`whelp data list` and `whelp data show`: what ships, and what a file holds."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whelp.cli import show as shown
from whelp.cli.base import PREPARE_PANEL, print_line

if TYPE_CHECKING:
    from whelp.text.formats.lines import Source

Name = Annotated[str, typer.Argument(metavar="NAME", help="What ships (with or without builtin:), or a file of yours.")]
Examples = Annotated[int, typer.Option("--n", min=0, help="Records to print.")]
Category = Annotated[str | None, typer.Option("--category", help="Only records of this one.", show_default=False)]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Look at the data that ship with whelp, or at a file of yours.")
    group.command("list")(list_all)
    group.command("show")(show)
    app.add_typer(group, name="data", rich_help_panel=PREPARE_PANEL)


def list_all() -> None:
    """Every data set that ships, with its records and categories. A recipe names one as builtin:<name>."""
    from whelp.text.formats import builtins, read_source

    rows = []
    for name in builtins():
        values = [row.value for row in read_source(f"builtin:{name}").rows]
        kinds = Counter(_kind(value) for value in values)
        rows.append((name, str(len(values)), ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())))
    shown.table("Data that ship with whelp", ("name", "records", "categories"), rows)


def show(name: Name, n: Examples = 3, category: Category = None) -> None:
    """Counts by category, and the first records.

    \b
    whelp data show rankings
    whelp data show evaluation --category self --n 10
    whelp data show pairs.jsonl
    """
    from whelp.errors import DataError

    source = _source(name)
    values = [row.value for row in source.rows if isinstance(row.value, dict)]
    kinds = Counter(_kind(value) for value in values)
    if category is not None:
        values = [value for value in values if _kind(value) == category]
        if not values:
            raise DataError(f"{source.name} holds nothing of the category {category!r}; it has {', '.join(kinds)}")
    shown.table(f"{source.name}: {len(source.rows)} records", ("category", "records"), [
        (kind, str(count)) for kind, count in kinds.most_common()
    ])  # fmt: skip
    for row in [row for row in source.rows if not isinstance(row.value, dict)][:n]:
        print_line("warning", f"{source.name}:{row.line}: {row.problem or 'is not a JSON object'}", "yellow")
    for value in values[:n]:
        typer.echo("\n" + "\n".join(f"{key}: {_text(entry)}" for key, entry in value.items()))


def _source(name: str) -> Source:
    from whelp.text.formats import builtins, read_source

    return read_source(f"builtin:{name}" if name in builtins() else name)


def _kind(value: Any) -> str:
    """The category of a record, or the value that a principle serves."""
    return str(value.get("category") or value.get("value") or "-") if isinstance(value, dict) else "-"


def _text(entry: Any) -> str:
    """Strings as they are, conversations turn by turn, anything else as JSON."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in entry):
        return "".join(f"\n  {turn['role']}: {turn['content']}" for turn in entry)
    if isinstance(entry, list) and all(isinstance(text, str) for text in entry):
        return "".join(f"\n  {i}. {text}" for i, text in enumerate(entry, 1))
    return json.dumps(entry, ensure_ascii=False)
