"""A watch over PPO, and what is done when it gives alarm."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from whelp.config import PPOConfig
from whelp.engines.base import Engine
from whelp.maths.shaping import AdaptiveKL, FixedKL
from whelp.monitors.hacks import SIGNS
from whelp.monitors.watch import PATIENCE, Alarm, Watch
from whelp.runs.checkpoint import checkpoint_step, checkpoints
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Stage

if TYPE_CHECKING:
    from whelp.stages.ppo import Rollout

FILE = "alarms.jsonl"
SHOWN = 3
"""Samples that are kept of each alarm: those in which its signal is strongest."""
RAISE = 2.0
"""What the price of a nat is multiplied by."""
BEHIND = PATIENCE + 1
"""Iterations by which a checkpoint must be older than an alarm to be called good: the answers of the policy that it holds, which
are those of the iteration behind it, came before the first batch that counted for the alarm."""
Next = Literal["learn", "skip", "stop"]
"""What becomes of a batch of answers: learned from, not learned from, or the last one."""


@dataclass(slots=True)
class Guard:
    """Watches the answers of each iteration before anything is learned from them."""

    config: PPOConfig
    stage: Stage
    watch: Watch = field(default_factory=Watch)
    alarmed: list[int] = field(default_factory=list)
    """Iterations that raised an alarm."""
    log: MetricsLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.stage.folder, FILE)

    @classmethod
    def begin(cls, config: PPOConfig, stage: Stage, engine: Engine, step: int, state: Mapping[str, Any]) -> Guard:
        """At `step`, with what a checkpoint holds of it. Where it may go back, the start is a checkpoint to go back to."""
        guard = cls(config, stage, Watch.of_dict(state.get("watch", {})), list(state.get("alarmed", [])))
        guard.log.truncate_after(step)
        if guard.goes_back:
            stage.save_total_limit = max(stage.save_total_limit, 1 + BEHIND)
            if step == 0:
                stage.save(engine, 0)
        return guard

    @property
    def goes_back(self) -> bool:
        return self.config.watch in ("rollback", "stop")

    @property
    def state(self) -> dict[str, Any]:
        return {"watch": self.watch.as_dict(), "alarmed": self.alarmed}

    def heed(self, engine: Engine, leash: FixedKL | AdaptiveKL, step: int, rollout: Rollout) -> Next:
        """Look at the answers of iteration `step`, and on alarm do what the recipe says: say it, raise the price of a nat, or go
        back to the last good checkpoint, and there raise the price or stop."""
        if self.config.watch == "off" or not self._alarms(step, rollout):
            return "learn"
        if self.goes_back:
            self._go_back(engine, step)
        if self.config.watch in ("raise_kl", "rollback"):
            leash.kl_coef *= RAISE
            self.watch.streak.clear()
            self.stage.progress.warn(f"a nat now costs {leash.kl_coef:.3g}")
        return "stop" if self.config.watch == "stop" else "skip" if self.goes_back else "learn"

    def _alarms(self, step: int, rollout: Rollout) -> list[Alarm]:
        """What is wrong with these answers; kept in `FILE` with the worst of them, and said."""
        texts = [completion.text for completion in rollout.completions]
        values = signals_of(texts, rollout.is_response, rollout.entropy)
        alarms = self.watch.observe(values, [c.prompt.id for c in rollout.completions])
        if alarms:
            self.alarmed.append(step)
        last = self.last_good(step)
        for alarm in alarms:
            worst = _worst(rollout, values[alarm.signal], is_fall=alarm.now < alarm.start)
            self.log.append(step, signal=alarm.signal, start=alarm.start, now=alarm.now, z=alarm.z, samples=worst)
            good = f"The last good checkpoint is {last}." if last else "There is no good checkpoint."
            self.stage.progress.warn(f"iteration {step}: {alarm}, as in {worst[0]['completion'][:160]!r}. {good}")
        return alarms

    def _go_back(self, engine: Engine, step: int) -> None:
        """To the last good checkpoint; later ones are deleted. A run that is killed now does the same again."""
        good = self.last_good(step)
        assert good is not None, "the start was kept"
        engine.load_state(good)
        for folder in checkpoints(self.stage.folder):
            if checkpoint_step(folder) > checkpoint_step(good):
                shutil.rmtree(folder)
        self.alarmed.clear()
        self.stage.progress.warn(f"the policy is that of {good} again")

    def told(self) -> list[dict[str, Any]]:
        """The alarms of the whole stage, without their samples."""
        rows = self.log.read(self.log.path)
        return [{name: value for name, value in row.items() if name != "samples"} for row in rows]

    def last_good(self, step: int) -> Path | None:
        """The newest checkpoint whose answers raised no alarm."""
        first = min(self.alarmed, default=step)
        good = [folder for folder in checkpoints(self.stage.folder) if checkpoint_step(folder) <= first - BEHIND]
        return good[-1] if good else None


def signals_of(
    texts: Sequence[str], is_response: Bool[Tensor, "B R"], entropy: Float[Tensor, "B R"]
) -> dict[str, list[float]]:
    """Each signal of the watch, one number an answer. `is_response`: True at an answer's tokens."""
    counts = is_response.sum(1)
    return {
        "length": counts.tolist(),
        "entropy": ((entropy * is_response).sum(1) / counts.clamp_min(1)).tolist(),
        **{name: [read(text) for text in texts] for name, read in SIGNS.items()},
    }


def _worst(rollout: Rollout, values: Sequence[float], is_fall: bool) -> list[dict[str, Any]]:
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=not is_fall)
    return [
        {
            "prompt": rollout.completions[i].prompt.text,
            "completion": rollout.completions[i].text,
            "value": values[i],
            "score": float(rollout.scores[i]),
        }
        for i in order[:SHOWN]
    ]
