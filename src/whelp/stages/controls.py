"""Reward models trained again, to know what the first is worth: on shuffled ranks, and on fewer prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import linear_regression
from typing import Any

from whelp.config import RewardConfig
from whelp.engines.base import Engine, Held, ModelSpec, Term
from whelp.maths.preference import BradleyTerry
from whelp.progress import rate
from whelp.runs.files import read_json, write_json_atomic
from whelp.stages import trust
from whelp.stages.comparisons import prompts_of, render, rows_by_ranking, targets
from whelp.stages.context import Stage, epochs_of_batches, planned, shuffled, warmup_then_linear
from whelp.text.chat import Chat
from whelp.types import Ranking

CONTROL = "control"
MEASURED = "controls.json"


def run(
    engine: Engine,
    chat: Chat,
    spec: ModelSpec,
    rankings: Sequence[Ranking],
    held_out: Sequence[Ranking],
    config: RewardConfig,
    stage: Stage,
    whole: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Accuracy on `held_out` of models that start as the reward model did (`spec`): of each on other shuffled ranks, and of
    each share of the prompts. None of them is kept; what was measured of each is, so that a stage that was killed goes on.

    The curve ends at all prompts: at `whole`, the reward model's own accuracy, or where that is no like model's (None) at the
    accuracy of a last one.
    """
    used, _ = planned(len(rankings), config.per_step_batch_size, config.num_train_epochs, config.max_steps, stage.seed)
    rankings = [rankings[i] for i in used]  # what no step needs is not read
    measured = read_json(stage.folder / MEASURED)
    with engine.hold(render(chat, rankings)[0]) as held, engine.hold(render(chat, held_out)[0]) as test:

        def accuracy(name: str, learned: Sequence[Ranking], chosen: Sequence[int], seed: int) -> dict[str, float]:
            if name in measured:
                return measured[name]
            engine.add(CONTROL, replace(spec, members=1, seed=spec.seed + seed))
            try:
                _train(engine, held, learned, chosen, config, stage, name)
                measured[name] = trust.accuracy(engine, CONTROL, test, held_out).as_dict()
            finally:
                engine.remove(CONTROL)
            write_json_atomic(stage.folder / MEASURED, measured)
            return measured[name]

        everyone = range(len(rankings))
        prompts = prompts_of(rankings)
        order = shuffled(max(prompts) + 1, stage.seed, 1)
        controls = [
            accuracy(f"shuffled ranks, {i} of {config.shuffles}", shuffle(rankings, stage.seed + i), everyone, i)
            for i in range(1, config.shuffles + 1)
        ]
        curve = []
        shares = sorted(config.learning_curve)
        for share in [*shares, 1.0] if shares and whole is None else shares:
            drawn = set(order[: max(1, round(share * len(order)))])
            chosen = [i for i in everyone if prompts[i] in drawn]
            found = accuracy(f"{len(drawn)} of {len(order)} prompts", rankings, chosen, 0)
            curve.append({"prompts": len(drawn), "accuracy": found})
        if curve and whole is not None:
            curve.append({"prompts": len(order), "accuracy": dict(whole)})
    return {"shuffled": controls, "learning_curve": curve}


def told(metrics: Mapping[str, Any]) -> list[str]:
    """A line for each kind of control among a reward model's metrics."""
    lines = []
    if found := metrics.get("shuffled"):
        rates = ", ".join(rate(one) for one in found)
        inside = sum(one["low"] <= 0.5 <= one["high"] for one in found)
        above = sum(one["low"] > 0.5 for one in found)
        judged = f"50% lies in {inside} of {len(found)} intervals"
        if 2 * above > len(found):
            judged = f"A LEAK: {above} of {len(found)} intervals lie above 50%"
        lines.append(f"Trained on shuffled ranks it is right in {rates}: {judged}.")
    if found := metrics.get("learning_curve"):
        rates = ", ".join(f"{one['accuracy']['mean']:.0%} after {one['prompts']}" for one in found)
        slope = 100 * per_doubling([(one["prompts"], one["accuracy"]["mean"]) for one in found])
        gain = "" if math.isnan(slope) else f": {slope:+.1f} points a doubling"
        lines.append(f"By the number of prompts it learned from it is right in {rates}{gain}.")
    return lines


def per_doubling(points: Sequence[tuple[int, float]]) -> float:
    """What twice as many prompts bring, by the straight line through (log2 of the prompts, accuracy)."""
    x, y = [math.log2(count) for count, _ in points], [accuracy for _, accuracy in points]
    return linear_regression(x, y).slope if len(set(x)) > 1 else math.nan


def shuffle(rankings: Sequence[Ranking], seed: int) -> list[Ranking]:
    """The same answers and the same ranks, but whose rank is whose is drawn."""
    draw = random.Random(seed)
    return [replace(r, ranks=tuple(draw.sample(r.ranks, len(r.ranks)))) for r in rankings]


def _train(
    engine: Engine,
    held: Held,
    rankings: Sequence[Ranking],
    chosen: Sequence[int],
    config: RewardConfig,
    stage: Stage,
    name: str,
) -> None:
    rows_of = rows_by_ranking(rankings)
    epochs = epochs_of_batches(len(chosen), config.per_step_batch_size, config.num_train_epochs, stage.seed)
    batches = epochs[: config.max_steps]
    loss = BradleyTerry(config.center_rewards_coefficient)
    with stage.progress.steps(name, len(batches)) as bar:
        for step, places in enumerate(batches):
            batch = [chosen[place] for place in places]
            rows = held.select([row for i in batch for row in rows_of[i]])
            learned = targets([rankings[i] for i in batch], config.label_smoothing)
            lr = config.learning_rate * warmup_then_linear(step, len(batches), config.warmup_ratio)
            engine.update([Term(CONTROL, rows, learned, loss)], {CONTROL: lr})
            bar.advance(1)
