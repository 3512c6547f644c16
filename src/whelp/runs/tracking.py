"""Where else the numbers of each step go: `metrics.jsonl` is always written, a tracker hears the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, final

from whelp.errors import ConfigError

TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """Hears of every step once its line is in `metrics.jsonl`. A stage that is resumed goes on behind its last checkpoint, and
    one that starts over begins at step 1: steps that come again count anew."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


@final
class TensorBoardTracker:
    """Events below `folder`, a subfolder for each stage. Raises `ConfigError` where TensorBoard is not installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._make = _summary_writer()
        self._writers: dict[str, Any] = {}
        self._last: dict[str, int] = {}

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._writers or step <= self._last[stage]:
            self._begin(stage, step)
        for name, value in metrics.items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()  # a killed process loses nothing that its metrics.jsonl holds
        self._last[stage] = step

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _begin(self, stage: str, step: int) -> None:
        """TensorBoard drops what earlier attempts wrote from `step` on."""
        if stage in self._writers:
            self._writers[stage].close()
        self._writers[stage] = self._make(log_dir=str(self.folder / stage), purge_step=step)


def tracker_of(report_to: str, run_dir: Path) -> Tracker | None:
    """The tracker that a recipe names. Raises `ConfigError` where what it needs is not installed."""
    return TensorBoardTracker(run_dir / TENSORBOARD) if report_to == TENSORBOARD else None


def refuse_missing(report_to: str) -> None:
    """Raises `ConfigError` where the tracker that a recipe names needs what is not installed."""
    if report_to == TENSORBOARD:
        _summary_writer()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"report_to is {TENSORBOARD}, which is not installed ({error}): pip install 'whelp[tensorboard]', or leave report_to "
            "at none. metrics.jsonl is written either way."
        ) from error
    return SummaryWriter
