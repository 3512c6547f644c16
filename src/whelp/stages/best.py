"""Which of PPO's policies is kept: the last, or the one whose answers somebody else likes best, who taught it nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine
from whelp.runs.files import read_json
from whelp.stages.context import STATE, Stage

FOLDER = "best"


@dataclass(slots=True)
class Best:
    """Early stopping by a second opinion. Of the policies that checkpoints hold, the one is kept before which answers were liked
    best, on average since the checkpoint before: what fools one reward model fools another less, which learned from other
    comparisons (Gao et al. 2023, where the true reward falls while the proxy rises)."""

    stage: Stage
    step: int = 0
    """Of the best checkpoint so far; 0: there is none."""
    mean: float = 0.0
    """What was said before it."""
    since: list[float] = field(default_factory=list)
    """What was said in the iterations since the last checkpoint."""

    @classmethod
    def begin(cls, stage: Stage, state: Mapping[str, Any]) -> Best:
        """With what a checkpoint holds of it."""
        best = cls(stage, **state.get("best", {}))
        best.keep()
        return best

    @property
    def state(self) -> dict[str, Any]:
        return {"step": self.step, "mean": self.mean, "since": self.since}

    def observe(self, opinions: Float[Tensor, "B"], step: int, is_saved: bool) -> None:
        """What is said of the answers of iteration `step`; `is_saved`: a checkpoint follows."""
        self.since.append(float(opinions.mean()))
        if not is_saved:
            return
        if self.step == 0 or fmean(self.since) > self.mean:
            self.step, self.mean = step, fmean(self.since)
        self.since = []

    def keep(self) -> None:
        """Hold on to the best checkpoint, where it is the newest; a run that was killed before it did does so now."""
        if self.step == 0:  # a watch that may go back has a checkpoint-0 of its own
            return
        newest, kept = self.stage.folder / f"checkpoint-{self.step}", self.stage.folder / FOLDER
        if newest.is_dir() and read_json(kept / STATE).get("step") != self.step:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(newest, kept, copy_function=_link)

    def restore(self, engine: Engine) -> None:
        """The best policy is the engine's again."""
        engine.load_state(self.stage.folder / FOLDER)
        self.stage.progress.say(f"the policy of iteration {self.step} is kept: by a second opinion it is the best")


def _link(file: str, to: str) -> None:
    try:
        os.link(file, to)
    except OSError:  # not every file system has links
        shutil.copy2(file, to)
