"""What a judge says of many pairs, written down as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whelp.judges.base import Comparison, Judge, Label, Opinion, labels
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Stage


def hear(
    judge: Judge,
    comparisons: Sequence[Comparison],
    stage: Stage,
    file: str,
    bounds: tuple[float, float] = (0.0, 1.0),
    what: str = "AI feedback",
) -> dict[str, Label | None]:
    """What the judge says, by the ids of the comparisons, kept in `file` as it comes: what stands there is not asked again.
    `bounds`: see `labels`."""
    log = MetricsLog(stage.folder, file)
    heard = {row["id"]: _read(row) for row in log.whole()}
    todo = [comparison for comparison in comparisons if comparison.id not in heard]
    with stage.listening(), stage.progress.steps(what, len(comparisons)) as bar:
        bar.advance(len(comparisons) - len(todo))
        for place, said in labels(judge, todo, bounds):
            id = todo[place].id
            heard[id] = said
            log.append(len(heard), id=id, label=None if said is None else _row(said))
            bar.advance(1)
            stage.heed(len(heard), len(comparisons))
    return heard


def _row(label: Label) -> dict[str, Any]:
    return {
        "first": label.first,
        "position_bias": label.position_bias,
        "opinions": [{"first": o.first, "reasoning": o.reasoning, "cost": o.cost} for o in label.opinions],
    }


def _read(row: Mapping[str, Any]) -> Label | None:
    said = row["label"]
    if said is None:
        return None
    given, swapped = (Opinion(**one) for one in said["opinions"])
    return Label(said["first"], said["position_bias"], (given, swapped))
