"""What every training stage needs besides its engine: a folder, a log, checkpoints, and an ear for Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from whelp.engines.base import Engine, SamplingParams
from whelp.errors import Interrupted, TrainingError
from whelp.progress import Progress
from whelp.runs.checkpoint import latest_checkpoint, save_checkpoint
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.metrics import MetricsLog
from whelp.runs.tracking import Tracker
from whelp.types import Completion, Prompt

STATE = "state.json"
Record = TypeVar("Record")


@dataclass(slots=True)
class Stage:
    """One stage of one run while it trains."""

    folder: Path
    progress: Progress
    seed: int
    save_steps: int = 50
    save_total_limit: int = 1
    tracker: Tracker | None = None
    log: MetricsLog = field(init=False)
    samples: MetricsLog = field(init=False)
    stop_requested: bool = False
    seconds_before: float = field(default=0.0, init=False)
    """What earlier attempts took, up to the checkpoint that this one went on from."""
    started: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.folder, tracker=self.tracker)
        self.samples = MetricsLog(self.folder, "samples.jsonl")

    def resume(self, engine: Engine) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint: the number of steps it has behind it, and the driver's own state."""
        checkpoint = latest_checkpoint(self.folder, self.progress.warn)
        step, state = 0, {}
        if checkpoint is not None:
            state = read_json(checkpoint / STATE)
            step = int(state["step"])
            self.seconds_before = float(state.get("seconds", 0.0))
            engine.load_state(checkpoint)
            self.progress.say(f"resuming {self.folder.name} behind step {step}")
        self.log.truncate_after(step)
        self.samples.truncate_after(step)
        return step, state

    def save(self, engine: Engine, step: int, **state: Any) -> None:
        def write(folder: Path) -> None:
            engine.save_state(folder)
            seconds = self.seconds_before + time.perf_counter() - self.started
            write_json_atomic(folder / STATE, {"step": step, "seconds": seconds, **state})

        save_checkpoint(self.folder, step, write, self.save_total_limit)

    def end_step(self, engine: Engine, step: int, total: int, **state: Any) -> None:
        """Save where a save is due and behind the last step; where the user asked to stop, save and raise `Interrupted`."""
        if self.stop_requested or step % self.save_steps == 0 or step == total:
            self.save(engine, step, **state)
        self.heed(step, total)

    def heed(self, step: int, total: int) -> None:
        """Raises `Interrupted` where the user asked to stop."""
        if self.stop_requested:
            raise Interrupted(
                f"stopped after step {step} of {total} of {self.folder.name}; everything up to there is saved"
            )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C ends the stage at the next step, saved; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def ask(*_: object) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True
            self.progress.warn("stopping after this step and saving; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.stop_requested:  # asked for behind the last step, while the stage was measuring
            raise Interrupted(f"stopped behind the last step of {self.folder.name}; everything up to there is saved")

    @contextmanager
    def step(self, number: int, rows: Sequence[Any]) -> Iterator[None]:
        """Names the step, the batch and the last good checkpoint when training breaks inside."""
        try:
            yield
        except TrainingError as error:
            checkpoint = latest_checkpoint(self.folder, self.progress.warn)
            last = f"The last good checkpoint is {checkpoint}" if checkpoint else "There is no checkpoint yet"
            raise TrainingError(
                f"{self.folder.name} step {number}: {error}. Batch: {', '.join(map(str, rows[:8]))}"
                f"{' ...' if len(rows) > 8 else ''}. {last}. The same settings break at the same step again: a lower learning "
                "rate or a smaller max_grad_norm usually helps, and starts the stage over."
            ) from error


class Samples(Protocol):
    """What gives a model's answers: an engine, or a model behind an address."""

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]: ...


def answers_in_order(
    engine: Samples, model: str, prompts: Sequence[Prompt], params: SamplingParams
) -> list[Completion]:
    """Sampled answers in the order of their prompts; an engine gives them as they finish."""
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    return sorted(engine.sample(model, prompts, params), key=lambda c: (order[c.prompt.id], c.sample))


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).tolist()


def epochs_of_batches(count: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """The rows of every optimizer step of the whole training; the last batch of an epoch may be smaller."""
    batches = []
    for epoch in range(epochs):
        order = shuffled(count, seed, epoch)
        batches += [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return batches


def planned(
    count: int, batch_size: int, epochs: int, max_steps: int | None, seed: int
) -> tuple[list[int], list[list[int]]]:
    """The rows that any step needs, in order, and the batches by their places there: `max_steps` may leave most rows out."""
    batches = epochs_of_batches(count, batch_size, epochs, seed)[:max_steps]
    used = sorted({row for batch in batches for row in batch})
    place = {row: i for i, row in enumerate(used)}
    return used, [[place[row] for row in batch] for batch in batches]


def spread(records: Sequence[Record], count: int | None, category: Callable[[Record], str]) -> list[Record]:
    """At most `count` records, taken in turn from every category."""
    if count is None or len(records) <= count:
        return list(records)
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(category(record), []).append(record)
    queues = [list(reversed(group)) for group in by_name.values()]
    chosen: list[Record] = []
    while len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return chosen


def warmup_then_linear(step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate at `step` (from 0): a linear rise over the warm-up, then a linear fall to 0."""
    warmup = max(1, round(total * warmup_ratio))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (total - step) / max(1, total - warmup)


def numbers(metrics: Mapping[str, float], *names: str) -> dict[str, float]:
    """The few numbers worth showing beside a progress bar."""
    return {name.split("/")[-1]: metrics[name] for name in names if name in metrics}
