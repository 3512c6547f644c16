"""What Constitutional AI did in a run: who judged, whether that may be trusted, and what became of the revisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from whelp.report.artifacts import Interval, Json, boolean, interval, number, table, text, whole


@final
@dataclass(frozen=True, slots=True)
class Feedback:
    """A judge's labels, and what it is worth on pairs that people ranked."""

    judge: str
    trusted: bool | None
    verdict: str
    agreement: Interval
    by_principle: Mapping[str, Interval]
    flips: Interval
    """how often its two orders name different answers"""
    position_bias: Interval
    calibration_error: float | None
    calibration_error_after: float | None
    temperature: float | None
    labels: int | None
    pairs: int | None
    unread: int | None
    sureness: float | None
    labels_per_hour: float | None
    cost: float | None


@final
@dataclass(frozen=True, slots=True)
class Revisions:
    """Critique and revision."""

    prompts: int | None
    rounds: int | None
    fates: Mapping[str, int]


def feedback(result: Json) -> Feedback | None:
    """Of the stage's metrics.json."""
    if not result:
        return None
    found = table(result.get("trust"))
    return Feedback(
        judge=text(result.get("judge")),
        trusted=boolean(result.get("trusted")),
        verdict=text(result.get("verdict")),
        agreement=interval(found.get("agreement")),
        by_principle={text(name): interval(rate) for name, rate in table(found.get("by_principle")).items()},
        flips=interval(found.get("flips")),
        position_bias=interval(found.get("position_bias")),
        calibration_error=number(found.get("calibration_error")),
        calibration_error_after=number(found.get("calibration_error_after")),
        temperature=number(result.get("temperature")),
        labels=whole(result.get("labels")),
        pairs=whole(result.get("pairs")),
        unread=whole(result.get("unread")),
        sureness=number(result.get("sureness")),
        labels_per_hour=number(result.get("labels_per_hour")),
        cost=number(result.get("cost")),
    )


def revisions(result: Json) -> Revisions | None:
    """Of the stage's metrics.json."""
    if not result:
        return None
    fates = {text(fate): whole(count) or 0 for fate, count in table(result.get("fates")).items()}
    return Revisions(whole(result.get("prompts")), whole(result.get("rounds")), fates)
