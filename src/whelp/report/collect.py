"""What a run's artifacts say, in the report's own nouns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from whelp.errors import RunError
from whelp.report.artifacts import Artifacts, Interval, Json, boolean, interval, number, rows, table, text, whole
from whelp.report.audit import Alarm, Audit, alarms, audit
from whelp.report.constitution import Feedback, Revisions, feedback, revisions
from whelp.report.evaluation import BeforeAfterRow, Completed, Evaluation, before_after_of, completed, evaluation_of
from whelp.runs.manifest import kind_of

OPTIONAL = ("labeller", "revise", "sft-revised", "feedback", "dpo", "audit")
"""Stages that most runs do without: nothing is said of them where they are not run."""
BEFORE_ROUNDS, IN_A_ROUND, BEHIND_ROUNDS = (
    ("sft", "labeller", "revise", "sft-revised", "feedback", "reward", "judge", "ppo"),
    ("label", "reward", "ppo"),
    ("dpo", "evaluate", "audit"),
)


@final
@dataclass(frozen=True, slots=True)
class Input:
    """A file or model that a stage read."""

    name: str
    path: str
    sha256: str


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """One folder of the run."""

    name: str
    state: Literal["done", "unfinished", "not run"]
    seconds: float | None
    peak_memory_mb: float | None
    fingerprint: str
    """of all that it was made from"""
    inputs: tuple[Input, ...]
    result: Json
    """metrics.json"""
    log: tuple[Json, ...]
    """metrics.jsonl: a line a step"""


@final
@dataclass(frozen=True, slots=True)
class Preferences:
    """How well a model of preferences (the reward model, the judge) orders held-out pairs."""

    trusted: bool | None
    verdict: str
    accuracy: Interval
    surface: Interval
    """accuracy of a baseline that sees the surface of an answer only"""
    length: Interval
    """accuracy of preferring the longer answer, or the shorter, whichever the training pairs did"""
    advantage: Interval
    """accuracy minus the surface baseline's"""
    margin: float | None
    loss: float | None
    pairs: int | None
    prompts: int | None
    by_category: Mapping[str, Interval]
    by_source: Mapping[str, Interval]
    calibration_error: float | None
    calibration_error_after: float | None
    """after temperature scaling"""
    temperature: float | None
    reliability: Mapping[str, Sequence[tuple[float, float]]]
    """(confidence, accuracy) of bins of pairs: before and after temperature scaling"""
    length_given_quality: Interval
    """correlation of score and length among answers of equal rank to one prompt"""
    shuffled: Sequence[Interval]
    """accuracy of models that were trained on shuffled ranks"""
    learning_curve: Sequence[tuple[int | None, Interval]]
    """accuracy after so many prompts, the whole training last; empty where only that is known"""


@final
@dataclass(frozen=True, slots=True)
class Rollout:
    """One line of ppo/samples.jsonl."""

    step: int | None
    prompt: str
    text: str
    score: float | None
    kl: float | None


@final
@dataclass(frozen=True, slots=True)
class RunData:
    """All that the report shows."""

    name: str
    created: str
    command: str
    history: tuple[tuple[str, str], ...]
    """(time, command) of every command given to the run"""
    versions: Mapping[str, str]
    recipe: Json
    stages: Mapping[str, Stage]
    """by name, in the order in which they are run"""
    reward: Preferences | None
    labeller: Preferences | None
    judge: Preferences | None
    revisions: Revisions | None
    feedback: Feedback | None
    audit: Audit | None
    alarms: tuple[Alarm, ...]
    """of the watch over PPO"""
    rollouts: tuple[Rollout, ...]
    own_answers: tuple[tuple[int | None, Interval], ...]
    """(iteration, accuracy since the one before) of PPO's reward on pairs of the policy's own answers"""
    rounds: tuple[tuple[int, Interval], ...]
    """(round, accuracy on its fresh pairs of the reward model before it)"""
    evaluation: Evaluation | None
    before_after: tuple[BeforeAfterRow, ...]
    completions: tuple[Completed, ...]
    outdated: tuple[str, ...]
    """stages that were run again, with something else, after they were evaluated"""
    problems: tuple[str, ...]
    """what could not be read, a sentence each"""

    def newest(self, stage: str) -> Stage:
        """That of the last online round that was begun, or the run's first."""
        return _newest(self.stages, stage)


def collect(run_dir: Path) -> RunData:
    """Read every artifact of a run that is there.

    Raises:
        RunError: `run_dir` is no folder. A missing or damaged artifact is no error.
    """
    artifacts = _open(run_dir)
    manifest = artifacts.table("manifest.json")
    recipe, inputs = table(manifest.get("recipe")), table(manifest.get("inputs"))
    rounds = range(1, 1 + (whole(table(recipe.get("rounds")).get("n")) or 0))
    names = (*BEFORE_ROUNDS, *(f"{stage}-{k}" for k in rounds for stage in IN_A_ROUND), *BEHIND_ROUNDS)
    stages = {name: _stage(artifacts, name, table(inputs.get(name))) for name in names}
    reward, ppo = _newest(stages, "reward"), _newest(stages, "ppo")
    evaluated = stages["evaluate"].result
    return RunData(
        name=text(manifest.get("name")) or run_dir.resolve().name,
        created=text(manifest.get("created")),
        command=text(manifest.get("command")),
        history=tuple(
            (text(table(row).get("at")), text(table(row).get("command"))) for row in rows(manifest.get("history"))
        ),
        versions=_versions(manifest),
        recipe=recipe,
        stages=stages,
        reward=_preferences(reward.result),
        labeller=_preferences(stages["labeller"].result),
        judge=_preferences(stages["judge"].result),
        revisions=revisions(stages["revise"].result),
        feedback=feedback(stages["feedback"].result),
        audit=audit(stages["audit"].result),
        alarms=alarms(ppo.result),
        rollouts=tuple(_rollout(line) for line in artifacts.lines(f"{ppo.name}/samples.jsonl")),
        own_answers=tuple((whole(table(one).get("step")), _accuracy(one)) for one in rows(ppo.result.get("on_policy"))),
        rounds=tuple((k, _accuracy(found)) for k in rounds if (found := stages[f"label-{k}"].result)),
        evaluation=evaluation_of(evaluated) if evaluated else None,
        before_after=before_after_of(artifacts),
        completions=tuple(completed(line) for line in artifacts.lines("evaluate/completions.jsonl")),
        outdated=tuple(_outdated(stages, run_dir.resolve().name)),
        problems=tuple(artifacts.problems),
    )


def before_after(run_dir: Path) -> list[BeforeAfterRow]:
    """The rows of the before/after table; [] when the run was not evaluated.

    Raises:
        RunError: `run_dir` is no folder.
    """
    return list(before_after_of(_open(run_dir)))


def _open(run_dir: Path) -> Artifacts:
    if not run_dir.is_dir():
        raise RunError(f"There is no run at {run_dir}: expected the folder that a run wrote. Check the path.")
    return Artifacts(run_dir)


def _stage(artifacts: Artifacts, name: str, recorded: Json) -> Stage:
    result, done = artifacts.table(f"{name}/metrics.json"), artifacts.table(f"{name}/DONE.json")
    log = artifacts.lines(f"{name}/metrics.jsonl")
    cost, read = table(done.get("cost")), table(table(done.get("parts")).get("inputs"))
    # DONE.json holds what the stage was made from; the manifest adds where that lay.
    inputs = (
        Input(
            text(key),
            text(table(recorded.get(key)).get("path")),
            text(read.get(key, table(recorded.get(key)).get("sha256"))),
        )
        for key in sorted({*recorded, *read})
    )
    begun = bool(log) or artifacts.exists(f"{name}/STARTED.json")
    return Stage(
        name=name,
        state="done" if done or result else "unfinished" if begun else "not run",
        seconds=number(cost.get("seconds")),
        peak_memory_mb=number(cost.get("peak_memory_mb")),
        fingerprint=text(artifacts.table(f"{name}/STARTED.json").get("fingerprint")),
        inputs=tuple(inputs),
        result=result,
        log=log,
    )


def _outdated(stages: Mapping[str, Stage], run: str) -> Iterator[str]:
    for read in stages["evaluate"].inputs:
        folder = Path(read.path)
        stage = stages.get(folder.name) if folder.parent.name == run else None
        if stage is not None and stage.fingerprint not in ("", read.sha256):
            yield stage.name


def _newest(stages: Mapping[str, Stage], kind: str) -> Stage:
    begun = [s for name, s in stages.items() if kind_of(name) == kind and s.state != "not run"]
    return begun[-1] if begun else stages[kind]


def _versions(manifest: Json) -> dict[str, str]:
    single = {name: manifest.get(name) for name in ("whelp", "python", "platform")}
    every = {**single, **table(manifest.get("packages"))}
    return {text(name): text(version) for name, version in every.items() if version is not None}


def _preferences(result: Json) -> Preferences | None:
    if not result:
        return None
    calibration = table(result.get("calibration"))
    return Preferences(
        trusted=boolean(result.get("trusted")),
        verdict=text(result.get("verdict")),
        accuracy=interval(result.get("accuracy_interval")),
        surface=_accuracy(result.get("surface")),
        length=_accuracy(result.get("length")),
        advantage=interval(result.get("advantage")),
        margin=number(result.get("margin")),
        loss=number(result.get("loss")),
        pairs=whole(result.get("n")),
        prompts=whole(result.get("prompts")),
        by_category=_accuracies(result.get("by_category")),
        by_source=_accuracies(result.get("by_source")),
        calibration_error=number(calibration.get("error")),
        calibration_error_after=number(calibration.get("error_after")),
        temperature=number(calibration.get("temperature")),
        reliability={"as it is": _bins(calibration.get("bins")), "tempered": _bins(calibration.get("bins_after"))},
        length_given_quality=interval(result.get("length_given_quality")),
        shuffled=[interval(value) for value in rows(result.get("shuffled"))],
        learning_curve=[
            (whole(table(one).get("prompts")), _accuracy(one)) for one in rows(result.get("learning_curve"))
        ],
    )


def _bins(value: Any) -> list[tuple[float, float]]:
    points = [(number(table(one).get("confidence")), number(table(one).get("accuracy"))) for one in rows(value)]
    return [(x, y) for x, y in points if x is not None and y is not None]


def _accuracies(value: Any) -> dict[str, Interval]:
    return {text(name): _accuracy(found) for name, found in table(value).items()}


def _accuracy(value: Any) -> Interval:
    return interval(table(value).get("accuracy"))


def _rollout(line: Json) -> Rollout:
    return Rollout(
        step=whole(line.get("step")),
        prompt=text(line.get("prompt")),
        text=text(line.get("completion")),
        score=number(line.get("score")),
        kl=number(line.get("kl")),
    )
