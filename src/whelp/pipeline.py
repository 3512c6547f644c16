"""From a recipe to a report: the stages in order, none of them twice for the same result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whelp.config import Recipe
from whelp.conversation import Speaker
from whelp.engines.base import SamplingParams
from whelp.errors import RunError
from whelp.estimate import Plan
from whelp.estimate import plan as make_plan
from whelp.jobs import Job, clear_checkpoints, jobs_of, parts_of, report_work
from whelp.preflight import check
from whelp.progress import Progress
from whelp.runs.cost import measure
from whelp.runs.files import as_run_error, read_json
from whelp.runs.lock import RunLock
from whelp.runs.manifest import Run, fingerprint, open_run
from whelp.runs.tracking import Tracker, tracker_of
from whelp.types import Message, Prompt
from whelp.workplace import Workplace


@dataclass(frozen=True, slots=True)
class StageCost:
    stage: str
    seconds: float
    peak_memory_mb: float
    state: str
    """ran, resumed, or unchanged (not run again)."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    path: Path
    table: Sequence[Any]
    """Rows of the before/after table (see `whelp.report.before_after`)."""
    report: Path | None
    costs: Sequence[StageCost]
    results: Mapping[str, Any] = field(default_factory=dict)
    """metrics.json of every stage."""


def run(
    recipe: Recipe,
    argv: Sequence[str],
    resume: bool,
    progress: Progress,
    allow_code: bool = False,
    tracker: Tracker | None = None,
) -> RunSummary:
    """Run what is missing of the recipe's stages. A `tracker` takes the place of `recipe.report_to`, and is closed.

    Raises `RunError` for a stage that was left unfinished, unless `resume`; any other `WhelpError` as it comes.
    """
    return _run(recipe, argv, resume, progress, allow_code=allow_code, tracker=tracker)


def evaluate_models(
    recipe: Recipe,
    models: Mapping[str, str],
    argv: Sequence[str],
    resume: bool,
    progress: Progress,
) -> RunSummary:
    """Compare any models, by name, on `recipe.evaluate.prompts`. Raises as `run` does."""
    return _run(recipe, argv, resume, progress, models=models)


def plan(recipe: Recipe, progress: Progress, allow_code: bool = False) -> Plan:
    """What the run would do and cost; nothing is written into its directory. Fetches the model where it is not there yet."""
    place = Workplace(recipe, Run(Path(recipe.output_dir)), progress, allow_code=allow_code)
    check(place, is_plan=True)
    return make_plan(recipe, place)


def _run(recipe: Recipe, argv: Sequence[str], resume: bool, progress: Progress, **extra: Any) -> RunSummary:
    path = Path(recipe.output_dir)
    place = Workplace(recipe, Run(path), progress, **extra)
    check(place)
    with as_run_error(path):
        path.mkdir(parents=True, exist_ok=True)
    with RunLock(path), ExitStack() as stack:
        if place.tracker is None:
            place.tracker = tracker_of(recipe.report_to, path)
        if place.tracker is not None:
            stack.callback(place.tracker.close)
        open_run(path, recipe.model_dump(mode="json"), argv)
        costs = [_run_job(place, job, resume) for job in jobs_of(recipe)]
        report = _write_report(place) if "report" in recipe.stages else None
    return summary(path, report, costs)


def summary(path: Path, report: Path | None, costs: Sequence[StageCost] = ()) -> RunSummary:
    from whelp.report import before_after

    results = {file.parent.name: read_json(file) for file in sorted(path.glob("*/metrics.json"))}
    return RunSummary(path, before_after(path), report, costs, results)


def _run_job(place: Workplace, job: Job, resume: bool) -> StageCost:
    progress, folder = place.progress, place.run.stage_dir(job.name)
    parts, inputs = parts_of(job, place)
    state = place.run.stage_state(job.name, parts)
    if state.kind == "done":
        done = read_json(folder / "DONE.json")
        progress.stage(job.name, "unchanged, not run again")
        return StageCost(job.name, done["cost"]["seconds"], done["cost"]["peak_memory_mb"], "unchanged")
    if state.kind == "partial" and not resume:
        raise RunError(f"{folder} was left unfinished. Go on with --resume, or choose another --output_dir.")
    detail = {"changed": "runs again: ", "new": "starts over: "}.get(state.kind, "")
    progress.stage(job.name, detail + "; ".join(state.why) if state.why else job.what)
    place.run.start_stage(job.name, parts)
    place.run.record_inputs(job.name, {name: read._asdict() for name, read in inputs.items()})
    with measure() as cost:
        result = job.work(place.at(job.round))
    if job.name in place.stages:
        cost.seconds += place.stages[job.name].seconds_before
    spent = asdict(cost) | {"device": place.compute.why}
    place.run.finish_stage(job.name, fingerprint(job.name, parts["config"], parts["inputs"]), result, spent)
    clear_checkpoints(folder)
    return StageCost(job.name, cost.seconds, cost.peak_memory_mb, "resumed" if state.kind == "partial" else "ran")


def _write_report(place: Workplace) -> Path:
    place.progress.stage("report", "one page, from what the stages left")
    return Path(report_work(place)["report"])


def report(run_dir: Path) -> Path:
    """Write report.html of a run anew."""
    from whelp.report import write_report

    return write_report(run_dir)


# -- a model by itself ------------------------------------------------------------------------------------------------


def sample(
    model: str,
    prompts: Sequence[str],
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    system_prompt: str | None = None,
) -> Iterator[tuple[str, str]]:
    """(prompt, answer), n answers to every prompt, as they finish."""
    params = SamplingParams(n, temperature, max_new_tokens, ("sample", seed))
    speaker = Speaker(model, params, system_prompt)
    asked = [Prompt(f"prompt-{i}", (Message("user", text),)) for i, text in enumerate(prompts)]
    for completion in speaker.sample(asked):
        yield completion.prompt.text, completion.text
