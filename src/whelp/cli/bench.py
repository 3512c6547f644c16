"""`whelp bench`: the proofs of PPO as a table, with what each measured, and races against other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whelp.cli import show
from whelp.cli.base import LOOK_PANEL
from whelp.errors import ConfigError

if TYPE_CHECKING:
    import pytest

CHECKOUT = Path(__file__).parents[3]
SUITE = CHECKOUT / "tests" / "conformance"
RACES = CHECKOUT / "benchmarks" / "races.py"
WORLD, HACKING = CHECKOUT / "benchmarks" / "hacking_world.py", CHECKOUT / "benchmarks" / "hacking.py"
All = Annotated[
    bool,
    typer.Option("--all", help="Also those that take more than an hour: the optimum, nine times, and five mistakes."),
]
OnTheModel = Annotated[
    bool, typer.Option("--on_the_model", help="Also on the default model, with each hack planted in the labels.")
]
Races = Annotated[list[str] | None, typer.Argument(help="Races by name; none: all that this machine has no record of.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Measure whelp against what is known.")
    group.command("conformance")(conformance)
    group.command("speed")(speed)
    group.command("hacking")(hacking)
    app.add_typer(group, name="bench", rich_help_panel=LOOK_PANEL)


def conformance(everything: All = False) -> None:
    """Run the conformance suite of a checkout and print each proof with what it measured.

    \b
    whelp bench conformance          about a minute
    whelp bench conformance --all    with the optimum at three prices and three seeds
    """
    try:
        import pytest
    except ModuleNotFoundError as error:
        raise ConfigError("the conformance suite runs on pytest: pip install 'whelp[dev]'.") from error
    _only_in_a_checkout(SUITE)
    proofs = Proofs()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = [str(SUITE), "--rootdir", str(SUITE.parents[1]), "-p", "no:terminal", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *([] if everything else ["-m", "not proof"])], plugins=[proofs])
    show.table("Conformance", ("proof", "measured", "result"), proofs.rows)
    if code != pytest.ExitCode.OK:
        typer.echo(f"\n{proofs.failed} of {len(proofs.rows)} failed: pytest {SUITE} says how", err=True)
        raise typer.Exit(1)


def speed(races: Races = None) -> None:
    """Race whelp against transformers and TRL on the same work, and write docs/benchmarks.md.

    The machine should do nothing else meanwhile. The peers are installed into environments of their own, once (3 GB).

    \b
    whelp bench speed              hours; stop and go on at will
    whelp bench speed decode-64    one race
    """
    _only_in_a_checkout(RACES)
    for command in (["run", *(races or [])], ["tables"]):
        if code := subprocess.run([sys.executable, str(RACES), *command]).returncode:
            raise typer.Exit(code)


def hacking(on_the_model: OnTheModel = False) -> None:
    """Let PPO hack its reward, with and without each fix, and write docs/reward-hacking.md.

    \b
    whelp bench hacking                   where every answer can be enumerated: an hour
    whelp bench hacking --on_the_model    the default model too: a night; stop and go on at will
    """
    for script in (WORLD, HACKING) if on_the_model else (WORLD,):
        _only_in_a_checkout(script)
        for command in ("run", "tables"):
            if code := subprocess.run([sys.executable, str(script), command]).returncode:
                raise typer.Exit(code)


def _only_in_a_checkout(part: Path) -> None:
    if not part.exists():
        raise ConfigError(f"there is no {part}: it is part of a checkout of whelp, not of an installed package.")


class Proofs:
    """A pytest plugin that keeps what each test found."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.failed = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.rows.append((report.nodeid, "cannot be loaded", "failed"))
            self.failed += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome == "failed":
            module, _, name = report.nodeid.partition("::")
            subject = Path(module).stem.removeprefix("test_").replace("_", " ")
            text = name.removeprefix("test_").replace("_", " ")
            self.rows.append((f"{subject}: {text}", ", ".join(map(_said, report.user_properties)), report.outcome))
            typer.echo(f"{report.outcome} after {report.duration:.0f} s: {subject}: {text}", err=True)
            self.failed += report.outcome == "failed"


def _said(measured: tuple[str, Any]) -> str:
    name, value = measured
    return f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
