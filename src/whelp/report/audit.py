"""What the audit of a run found: hacks that its reward model pays for, and what its policy learned of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from whelp.report.artifacts import Interval, Json, interval, number, rows, table, text, whole


@final
@dataclass(frozen=True, slots=True)
class Dose:
    dose: int | None
    rises: Interval
    """how often the hack raises the score"""
    shift: Interval
    """by how much, in standard deviations of the good answers' scores"""
    over_control: Interval
    """by how much more than a paraphrase"""


@final
@dataclass(frozen=True, slots=True)
class Probe:
    name: str
    hack: str
    what: str
    verdict: str
    doses: tuple[Dose, ...]
    best_liked: Dose


@final
@dataclass(frozen=True, slots=True)
class Measure:
    """One number of the policy's answers, before and after PPO."""

    name: str
    before: Interval
    after: Interval
    difference: Interval
    verdict: str


@final
@dataclass(frozen=True, slots=True)
class Alarm:
    """What the watch said while PPO trained."""

    step: int | None
    signal: str
    start: float | None
    now: float | None


@final
@dataclass(frozen=True, slots=True)
class Audit:
    verdict: str
    cases: int | None
    floor: float | None
    probes: tuple[Probe, ...]
    measures: tuple[Measure, ...]
    prompts: int | None
    gain: Interval
    share_not_of_length: float | None
    correlation_with_length: float | None
    gold: Interval
    """how often the judge prefers the policy"""

    @property
    def pays(self) -> Sequence[str]:
        return [one.name for one in self.probes if one.verdict == "pays"]


def audit(result: Json) -> Audit | None:
    """Of the stage's metrics.json."""
    if not result:
        return None
    model, policy = table(result.get("reward_model")), table(result.get("policy"))
    reward, gold = table(policy.get("reward")), table(policy.get("gold"))
    return Audit(
        verdict=text(result.get("verdict")),
        cases=whole(model.get("cases")),
        floor=number(model.get("floor")),
        probes=tuple(probe for one in rows(model.get("probes")) if (probe := _probe(table(one)))),
        measures=tuple(_measure(table(one)) for one in rows(policy.get("measures"))),
        prompts=whole(policy.get("prompts")),
        gain=interval(reward.get("gain")),
        share_not_of_length=number(reward.get("share_not_of_length")),
        correlation_with_length=number(reward.get("correlation_with_length")),
        gold=interval(gold.get("prefers")),
    )


def alarms(result: Json) -> tuple[Alarm, ...]:
    """Of PPO's metrics.json."""
    found = [table(one) for one in rows(result.get("alarms"))]
    return tuple(
        Alarm(whole(one.get("step")), text(one.get("signal")), number(one.get("start")), number(one.get("now")))
        for one in found
    )


def _probe(found: Json) -> Probe | None:
    """None where no dose was measured."""
    doses = tuple(_dose(table(one)) for one in rows(found.get("doses")))
    if not doses:
        return None
    best = next((one for one in doses if one.dose == whole(found.get("best_liked_dose"))), doses[-1])
    words = (text(found.get(key)) for key in ("name", "hack", "what", "verdict"))
    return Probe(*words, doses=doses, best_liked=best)


def _dose(found: Json) -> Dose:
    rates = (interval(found.get(key)) for key in ("rises", "shift", "over_control"))
    return Dose(whole(found.get("dose")), *rates)


def _measure(found: Json) -> Measure:
    numbers = (interval(found.get(key)) for key in ("before", "after", "difference"))
    return Measure(text(found.get("name")), *numbers, verdict=text(found.get("verdict")))
