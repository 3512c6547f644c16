"""`whelp run` and `whelp report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whelp.cli import show
from whelp.cli.base import (
    DEFAULT_RUN,
    LOOK_PANEL,
    TRAIN_PANEL,
    AllowCode,
    AllowUntrusted,
    OutputDir,
    Overrides,
    RecipeName,
    ReportTo,
    Resume,
    recipe_of,
)
from whelp.errors import RunError
from whelp.models.sources import ACCEPTED

if TYPE_CHECKING:
    from whelp.config import Recipe
    from whelp.pipeline import StageCost

DryRun = Annotated[bool, typer.Option("--dry_run", help="Say what would be done and what it would cost, then stop.")]
AcceptTerms = Annotated[
    bool,
    typer.Option("--accept_terms", help="You accept the terms of the recipe's model, which are shown without this."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run directory.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=TRAIN_PANEL)(run)
    app.command(rich_help_panel=LOOK_PANEL)(report)


def run(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    output_dir: OutputDir = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    allow_code: AllowCode = False,
    allow_untrusted_labels: AllowUntrusted = False,
    report_to: ReportTo = None,
    accept_terms: AcceptTerms = False,
) -> None:
    """Run a recipe: SFT, reward model, PPO, evaluation and report. Without a recipe: the default, assistant.

    A stage whose inputs have not changed is not run again.

    \b
    whelp run                                  the default; --dry_run says what it takes here
    whelp run --dry_run                        what it will cost, and nothing more
    whelp run smoke                            every stage, as short as possible
    whelp run constitutional                   critique and revision, and feedback by a judge
    whelp run from_base                        from a raw model, which comes under terms of its own
    whelp run my.yaml ppo.kl_coef=0.1 seed=1   your recipe, two settings changed
    whelp run --resume                         go on after an interruption
    """
    options = {
        "output_dir": output_dir,
        "report_to": report_to,
        "constitution.allow_untrusted_labels": "true" if allow_untrusted_labels else None,
    }
    resolved = recipe_of(recipe, overrides, options)
    if accept_terms:
        os.environ[ACCEPTED] = resolved.model
    if dry_run:
        _plan(resolved, allow_code)
        return
    from whelp import pipeline
    from whelp.progress import make_progress

    progress = make_progress()
    show.summary(pipeline.run(resolved, argv=ctx.obj, resume=resume, progress=progress, allow_code=allow_code))


def report(run_dir: RunFolder = Path(DEFAULT_RUN)) -> None:
    """Write report.html of a run again from what the run left, and print the before/after table.

    \b
    whelp report
    whelp report runs/smoke
    """
    if not run_dir.is_dir():
        raise RunError(f"there is no run directory {run_dir}; give the output_dir of a run, such as {DEFAULT_RUN}.")
    if not (run_dir / "manifest.json").is_file() and not any(run_dir.glob("*/DONE.json")):
        raise RunError(
            f"{run_dir} holds no run: it has neither a manifest.json nor a finished stage; give the output_dir of a run."
        )
    from whelp import pipeline

    page = pipeline.report(run_dir)
    show.summary(pipeline.summary(run_dir, page, recorded_costs(run_dir)))


def recorded_costs(run_dir: Path) -> list[StageCost]:
    """What each finished stage of a run took, in the order in which they finished."""
    from whelp.pipeline import StageCost
    from whelp.runs.files import read_json

    finished = sorted(run_dir.glob("*/DONE.json"), key=lambda file: file.stat().st_mtime_ns)
    costs = [(file.parent.name, read_json(file).get("cost", {})) for file in finished]
    return [StageCost(name, cost["seconds"], cost["peak_memory_mb"], "done") for name, cost in costs if cost]


def _plan(recipe: Recipe, allow_code: bool) -> None:
    from whelp import pipeline
    from whelp.progress import make_progress

    plan = pipeline.plan(recipe, make_progress(), allow_code=allow_code)
    rows = [
        (stage, what, show.minutes(time), f"{memory:,.0f} MB", f"{disk:,.0f} MB", state)
        for stage, what, time, memory, disk, state in plan.rows
    ]
    table_headings = ("stage", "what", "time", "memory", "disk", "state")
    show.table(f"Plan for {recipe.output_dir} (estimates; nothing was run)", table_headings, rows)
    if plan.rows:
        total, memory, disk = (
            sum(row[2] for row in plan.rows),
            max(row[3] for row in plan.rows),
            sum(row[4] for row in plan.rows),
        )
        typer.echo(f"\nin all: {show.minutes(total)}, {memory:,.0f} MB of memory, {disk:,.0f} MB of disk")
    for note in plan.notes:
        typer.echo(f"note: {note}")
