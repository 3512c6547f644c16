"""Results on stdout: tables on a terminal, plain text for a file or a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import typer

from whelp.progress import rate

if TYPE_CHECKING:
    from rich.console import Console

    from whelp.pipeline import RunSummary, StageCost
    from whelp.report.evaluation import Answer, BeforeAfterRow

_COLUMN = 40
"""Cells longer than this do not fit beside each other in plain text."""


def summary(result: RunSummary, stage: str | None = None) -> None:
    """What a command ends with: the numbers of a single stage, before and after, costs, and where it all lies."""
    if stage is not None:
        found = result.results.get(stage, {})
        trust(found)
        metrics(stage, found)
        differences(found)
    before_after(result.table)
    costs(result.costs)
    typer.echo(f"\nrun directory: {result.path}")
    if result.report is not None:
        typer.echo(f"report: {result.report}")


def metrics(stage: str, result: Mapping[str, Any]) -> None:
    """The numbers of a stage's result, as far as they are plain."""
    numbers = [(key, value) for key, value in result.items() if isinstance(value, Real) and not isinstance(value, bool)]
    if numbers:
        table(f"Result of {stage}", ("metric", "value"), [(key, f"{value:.6g}") for key, value in numbers])


def trust(result: Mapping[str, Any]) -> None:
    """What a reward model is worth, the verdict first."""
    if "verdict" not in result:
        return
    typer.echo(f"\n{result['verdict']}")
    people = result.get("human_agreement")
    if not isinstance(people, Mapping):  # nothing was held out, or the run is older than this table
        return
    calibration, length = result["calibration"], result["length_given_quality"]
    table(
        "Can it be trusted?",
        ("measured on held-out pairs", "result"),
        [
            (f"right, in {result['n']:,} pairs of {result['prompts']:,} prompts", rate(result["accuracy_interval"])),
            ("people agree, in published studies", f"{people['low']:.0%} to {people['high']:.0%}: it {_AMONG[people['model']]}"),
            ("the surface of the answers alone", rate(result["surface"]["accuracy"])),
            ("length alone", rate(result["length"]["accuracy"])),
            ("calibration error", f"{calibration['error']:.3f}, at temperature {calibration['temperature']:.2f}"
             f" {calibration['error_after']:.3f}"),
            ("score with length, at equal rank", rate(length, "+.2f")),
            *(("trained on shuffled ranks", rate(one)) for one in result.get("shuffled", [])),
            *((f"trained on {one['prompts']:,} prompts", rate(one["accuracy"])) for one in result.get("learning_curve", [])),
        ],
    )  # fmt: skip
    parts = [("kind", result["by_category"]), ("source", result["by_source"])]
    table(
        "Where it is right",
        ("", "name", "right", "prompts"),
        [
            (what, name, rate(one["accuracy"]), one["accuracy"]["n"])
            for what, names in parts
            for name, one in names.items()
        ],
    )


def differences(result: Mapping[str, Any]) -> None:
    """What can be told of the models of an evaluation, and what not."""
    from whelp.report.evaluation import evaluation_of
    from whelp.report.words import conclusions, decimal, preferences

    found = evaluation_of(result)
    said = [*conclusions(found), *preferences(found)]
    if said:
        typer.echo("\n" + "\n".join(said))
    for who, points in found.elo.items():
        rows = sorted(points.items(), key=lambda one: -(one[1].mean or 0.0))
        cells = [(name, *(decimal(value) for value in (one.mean, one.low, one.high))) for name, one in rows]
        table(f"Elo points, by {who}", ("model", "points", "from", "to"), cells)


_AMONG = {
    "below": "lies below",
    "within": "lies within",
    "above": "lies above: easier pairs than theirs, or a leak",
    "overlaps": "reaches over an edge of that",
}


def before_after(rows: Sequence[BeforeAfterRow]) -> None:
    """Each prompt with the models' answers side by side, and how often each model behaves so."""
    if rows:
        headings = ("prompt", *(answer.model for answer in rows[0].answers))
        cells = [(row.prompt, *(_answer(answer, row.behaviour) for answer in row.answers)) for row in rows]
        table("Before and after", headings, cells)


def costs(rows: Sequence[StageCost]) -> None:
    """Time and memory of each stage."""
    if rows:
        cells = [(row.stage, minutes(row.seconds / 60), f"{row.peak_memory_mb:,.0f} MB", row.state) for row in rows]
        table("What it cost", ("stage", "time", "peak memory", "state"), cells)


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A rich table on a terminal, else columns, or blocks where a cell is long."""
    from rich.console import Console

    console = Console(highlight=False)
    texts = [[str(cell) for cell in row] for row in rows]
    if console.is_terminal:
        _rich_table(console, title, headings, texts)
        return
    is_long = any(len(cell) > _COLUMN or "\n" in cell for row in texts for cell in row)
    typer.echo(f"\n{title}")
    for line in _blocks(headings, texts) if is_long else _columns(headings, texts):
        typer.echo(line)


def minutes(value: float) -> str:
    """`40 s` below two minutes, `12 min` from there on."""
    return f"{value * 60:.0f} s" if value < 2 else f"{value:.0f} min"


def _answer(answer: Answer, behaviour: str) -> str:
    rate = answer.rate
    if rate.mean is None:
        return answer.text
    of = "" if rate.n is None else f" of {rate.n} held-out prompts"
    return f"{answer.text}\n[{behaviour or 'passes'}: {rate.mean:.0%}{of}]"


def _rich_table(console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    is_long = any("\n" in cell for row in rows for cell in row)
    shown = Table(title=Text(title), title_justify="left", show_lines=is_long)
    for heading in headings:
        shown.add_column(Text(heading), overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    console.print()
    console.print(shown)


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    everything = [list(headings), *rows]
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in everything]


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = []
    for first, *rest in rows:
        lines.append(first)
        for heading, cell in zip(headings[1:], rest, strict=True):
            lines.append(f"  {heading}: {' '.join(cell.split())}")
    return lines
