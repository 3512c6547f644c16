"""Each step's numbers go to a tracker too: the same numbers, each step once, and nothing is run again for it."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from whelp import pipeline
from whelp.config import Recipe
from whelp.errors import ConfigError, Interrupted
from whelp.jobs import JOBS
from whelp.progress import SilentProgress
from whelp.recipes import load_recipe
from whelp.runs.manifest import Run
from whelp.runs.metrics import MetricsLog
from whelp.runs.tracking import TensorBoardTracker, Tracker, refuse_missing, tracker_of
from whelp.workplace import Workplace


class Heard:
    """Remembers what it was told."""

    def __init__(self, on_step: Callable[[int], object] = lambda step: None) -> None:
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.on_step = on_step
        self.closed = 0

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((stage, step, dict(metrics)))
        self.on_step(step)

    def close(self) -> None:
        self.closed += 1


class Events:
    """Stands where TensorBoard would: what it shows of each folder, where a writer's purge_step drops the steps from there on."""

    def __init__(self) -> None:
        self.shown: dict[Path, list[tuple[str, int, float]]] = {}
        self.flushed: dict[Path, int] = {}
        self.is_open: list[str] = []

    def writer(self, log_dir: str, purge_step: int) -> Any:
        events, folder = self, Path(log_dir)
        events.shown[folder] = [row for row in events.shown.get(folder, []) if row[1] < purge_step]
        events.is_open.append(log_dir)

        class Writer:
            def add_scalar(self, name: str, value: float, step: int) -> None:
                events.shown[folder].append((name, step, value))

            def flush(self) -> None:
                events.flushed[folder] = len(events.shown[folder])

            def close(self) -> None:
                events.is_open.remove(log_dir)

        return Writer()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    events, module = Events(), ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = events.writer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return events


@pytest.fixture
def recipe(tiny_model_folder, tmp_path: Path) -> Recipe:
    words = ["hello there", "how are you", "the end", "two and two", "i am fine", "today", "four"]
    turns = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a in words for b in words[:2]]
    data = tmp_path / "demonstrations.jsonl"
    data.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    settings = [
        "stages=[sft]",
        "trainable_layers=1",
        "sft.per_step_batch_size=2",
        "sft.num_train_epochs=1",
        "dtype=float32",
    ]
    model = tiny_model_folder("llama", num_hidden_layers=2)
    return load_recipe(None, [*settings, f"model={model}", f"sft.train_file={data}", f"output_dir={tmp_path / 'run'}"])


def run(recipe: Recipe, tracker: Tracker | None = None, resume: bool = False) -> str:
    (cost,) = pipeline.run(recipe, ["whelp", "run"], resume, SilentProgress(), tracker=tracker).costs
    return cost.state


# -- the hook -------------------------------------------------------------------------------------------------------


def test_a_tracker_hears_the_finite_numbers_of_a_line_that_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "ppo-2", tracker=(heard := Heard(lambda step: seen.append(log.path.read_text()))))
    seen: list[str] = []
    log.append(7, loss=0.5, episode=128, kl=float("nan"), finished=True, text="no", accuracy={"a": 1}, rewards=[1.0])
    assert heard.rows == [("ppo-2", 7, {"loss": 0.5, "episode": 128})]
    assert json.loads(seen[0])["accuracy"] == {"a": 1}


def test_a_stage_s_steps_are_those_of_its_metrics_and_nothing_is_run_for_another_tracker(recipe: Recipe) -> None:
    first, second = Heard(), Heard()
    assert run(recipe, first) == "ran"
    lines = MetricsLog.read(Path(recipe.output_dir) / "sft" / "metrics.jsonl")
    assert [("sft", line.pop("step"), line) for line in lines] == first.rows
    assert len(first.rows) > 4
    assert set(first.rows[0][2]) == {"loss", "lr", "grad_norm"}
    assert run(recipe, second) == "unchanged"
    assert second.rows == []
    assert (first.closed, second.closed) == (1, 1)


def test_a_stage_that_is_resumed_logs_no_step_twice(recipe: Recipe) -> None:
    heard = Heard(lambda step: signal.raise_signal(signal.SIGINT) if step == 3 else None)
    with pytest.raises(Interrupted):
        run(recipe, heard)
    assert heard.closed == 1
    assert run(recipe, heard, resume=True) == "resumed"
    steps = [step for _, step, _ in heard.rows]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 4
    lines = MetricsLog.read(Path(recipe.output_dir) / "sft" / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [metrics["loss"] for _, _, metrics in heard.rows]


def test_the_tracker_of_the_docs(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    (example,) = re.findall(r"```python\n(class .*?)\n\n", page, re.S)
    assert len(example.splitlines()) == 3
    named: dict[str, Any] = {}
    exec(example, named)
    run(recipe, named["Printed"]())
    assert capsys.readouterr().out.startswith("sft 1 {'loss': ")


# -- fingerprints ---------------------------------------------------------------------------------------------------


def test_reporting_elsewhere_changes_nothing_that_a_stage_depends_on(recipe: Recipe, tmp_path: Path) -> None:
    reporting = recipe.model_copy(update={"report_to": "tensorboard"})
    places = [Workplace(one, Run(tmp_path / "run"), SilentProgress()) for one in (recipe, reporting)]
    for job in JOBS.values():
        quiet, loud = (job.settings(place) for place in places)
        assert quiet == loud, job.name
        assert quiet["seed"] == 0


def test_a_finished_run_is_not_run_again_to_report_it(recipe: Recipe, events: Events) -> None:
    assert run(recipe) == "ran"
    assert run(recipe.model_copy(update={"report_to": "tensorboard"})) == "unchanged"
    assert events.shown == {}


# -- TensorBoard ----------------------------------------------------------------------------------------------------


def test_a_run_that_reports_to_tensorboard(recipe: Recipe, events: Events) -> None:
    assert run(recipe.model_copy(update={"report_to": "tensorboard"})) == "ran"
    folder = Path(recipe.output_dir)
    (shown,) = events.shown.values()
    assert list(events.shown) == [folder / "tensorboard" / "sft"]
    lines = MetricsLog.read(folder / "sft" / "metrics.jsonl")
    assert [(name, line["step"], line[name]) for line in lines for name in ("loss", "lr", "grad_norm")] == shown
    assert events.is_open == []


def write_attempts(tracker: Callable[[], TensorBoardTracker]) -> dict[str, dict[int, float]]:
    """A stage that is killed behind its fifth step, resumed behind its third and goes back behind its fourth, and another stage;
    what remains in the end."""
    first = tracker()
    for step in range(1, 6):
        first.log("ppo", step, {"loss": float(step)})
    first.log("sft", 1, {"loss": 9.0})
    first.close()
    second = tracker()
    for i, step in enumerate((4, 5, 6, 5, 6)):
        second.log("ppo", step, {"loss": 10.0 * step + i})
    second.close()
    return {"ppo": {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 53.0, 6: 64.0}, "sft": {1: 9.0}}


def test_steps_that_come_again_count_anew(events: Events, tmp_path: Path) -> None:
    expected = write_attempts(lambda: TensorBoardTracker(tmp_path))
    found = {folder.name: [(step, value) for _, step, value in rows] for folder, rows in events.shown.items()}
    assert found == {stage: list(steps.items()) for stage, steps in expected.items()}
    assert {folder.name: count for folder, count in events.flushed.items()} == {"ppo": 6, "sft": 1}
    assert events.is_open == []


def test_what_tensorboard_itself_reads(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stage, steps in write_attempts(lambda: TensorBoardTracker(tmp_path)).items():
        read = accumulator.EventAccumulator(str(tmp_path / stage))
        read.Reload()
        assert [(event.step, event.value) for event in read.Scalars("loss")] == list(steps.items())


def test_where_tensorboard_is_missing_nothing_is_begun(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refuse_missing("none")
    assert tracker_of("none", Path("runs/x")) is None
    reporting = recipe.model_copy(update={"report_to": "tensorboard"})
    with pytest.raises(ConfigError, match=r"report_to is tensorboard, which is not installed .*whelp\[tensorboard\]"):
        run(reporting)
    with pytest.raises(ConfigError, match=r"whelp\[tensorboard\]"):
        pipeline.plan(reporting, SilentProgress())
    assert not Path(recipe.output_dir).exists()
