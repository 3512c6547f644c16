"""Runs as they go: curves, samples at each step, and the report."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from markupsafe import Markup

from whelp.errors import RunError
from whelp.feedback.accounts import SignedIn
from whelp.runs.manifest import MANIFEST, REPORT
from whelp.web.pages import page
from whelp.web.security import DRAWN, at_least

if TYPE_CHECKING:  # drawing takes most of the time in which a server starts, and many never draw
    from whelp.report.collect import RunData

routes = APIRouter()
Admin = Annotated[SignedIn, Depends(at_least("admin"))]
PLOTS = {
    "ppo-reward": "Score, and score less the price of KL",
    "ppo-kl": "KL to the SFT model, nats an answer",
    "ppo-length": "Answer length, tokens",
    "ppo-entropy": "Entropy, nats a token",
    "ppo-shares": "Answers that ended by themselves, and repetition",
    "ppo-signs": "Answers that flatter, and that say how sure they are",
    "ppo-frontier": "Score by the root of the KL",
    "reward-loss": "Reward model: loss",
    "reward-accuracy": "Reward model: accuracy on what it learns from",
    "sft-loss": "SFT: loss",
}


class Plots:
    """The drawings of each run, drawn again only where a log has grown."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # matplotlib's settings are the process's
        self.drawn: dict[str, tuple[Any, Mapping[str, Markup]]] = {}

    def of(self, name: str, data: RunData) -> Mapping[str, Markup]:
        from whelp.report.render import training_plots

        state = [(stage.name, stage.fingerprint, len(stage.log)) for stage in data.stages.values()]
        with self.lock:
            if name not in self.drawn or self.drawn[name][0] != state:
                self.drawn[name] = state, training_plots(data)
            return self.drawn[name][1]


@routes.get("/runs")
def all_runs(request: Request, user: Admin) -> Response:
    found = [
        (name, datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime).strftime("%Y-%m-%d %H:%M"))
        for name, folder in runs_in(request).items()
    ]
    return page(request, "runs.html", user=user, runs=found, folder=request.app.state.runs_folder)


@routes.get("/runs/{name}")
def one_run(request: Request, name: str, user: Admin, step: Annotated[int | None, Query()] = None) -> Response:
    return _drawn_page(request, "run.html", user, name, step)


@routes.get("/runs/{name}/live")
def live(request: Request, name: str, user: Admin, step: Annotated[int | None, Query()] = None) -> Response:
    """What changes while a run goes on, for the page to show anew."""
    return _drawn_page(request, "live.html", user, name, step)


@routes.get("/runs/{name}/report")
def report(request: Request, name: str, user: Admin) -> Response:
    file = _folder(request, name) / REPORT
    if not file.is_file():
        raise RunError(f"{name} has no report yet; `whelp report` writes one.")
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"}
    return Response(file.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


def runs_in(request: Request) -> dict[str, Path]:
    """The folders of runs, the newest first."""
    folder: Path = request.app.state.runs_folder
    found = [path.parent for path in folder.glob(f"*/{MANIFEST}")]
    return {path.name: path for path in sorted(found, key=lambda p: -(p / MANIFEST).stat().st_mtime)}


def _folder(request: Request, name: str) -> Path:
    """Only what is listed is looked at, whatever a name contains. Raises `RunError`."""
    found = runs_in(request)
    if name not in found:
        raise RunError(f"there is no run {name[:60]!r}; go back to the list.")
    return found[name]


def _drawn_page(request: Request, template: str, user: SignedIn, name: str, step: int | None) -> Response:
    from whelp.report.collect import collect

    folder = _folder(request, name)
    data = collect(folder)
    plots = request.app.state.plots.of(name, data)
    steps = list(dict.fromkeys(rollout.step for rollout in data.rollouts if rollout.step is not None))
    shown = step if step in steps else (steps[-1] if steps else None)
    response = page(
        request,
        template,
        user=user,
        name=name,
        data=data,
        is_going=any(stage.state == "unfinished" for stage in data.stages.values()),
        stages=[stage for stage in data.stages.values() if stage.state != "not run"],
        plots=[(title, plots[key]) for key, title in PLOTS.items() if plots[key]],
        steps=steps,
        step=shown,
        is_newest=step not in steps,
        rollouts=[rollout for rollout in data.rollouts if rollout.step == shown],
        has_report=(folder / REPORT).is_file(),
    )
    response.headers["Content-Security-Policy"] = DRAWN
    return response
