"""What an evaluation left: rates, differences, who preferred which answers, and the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from whelp.report.artifacts import Artifacts, Interval, Json, boolean, interval, number, rows, table, text, whole


@final
@dataclass(frozen=True, slots=True)
class Opinion:
    """What the judge said of the final answers."""

    counted: bool | None
    why: str
    versus: str
    accuracy: Interval
    length_accuracy: Interval
    win_rate: Interval
    length_controlled: Interval


@final
@dataclass(frozen=True, slots=True)
class Versus:
    """How often one model's answers were preferred to another's."""

    win_rate: Interval
    length_controlled: Interval
    won: int | None
    tied: int | None
    lost: int | None
    unread: int | None
    flips: Interval
    """how often a judge named no or another answer when the order was turned: these are ties"""


@final
@dataclass(frozen=True, slots=True)
class Preferred:
    """What people said of the final answers, or a language model that was measured on people's pairs first."""

    judge: str
    are_people: bool
    verdict: str
    counted: bool | None
    agreement: Interval
    flips: Interval
    versus: Mapping[str, Versus]
    """keyed "rlhf over sft" """


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Checks passed by each model on held-out prompts. Tables are keyed by model, then by mode (greedy, sampled)."""

    models: tuple[str, ...]
    n_prompts: int | None
    suites: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    overall: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    """keyed "rlhf - sft", then by mode"""
    suite_differences: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    """the same by category in between; p-values are corrected over the categories"""
    lengths: Mapping[str, tuple[float | None, float | None]]
    """mean length in tokens, and the rate of answers that ended by themselves"""
    kl: Mapping[str, Interval]
    """nats a sequence to the SFT model"""
    judge: Opinion | None
    preferences: tuple[Preferred, ...]
    """others who compared the answers"""
    elo: Mapping[str, Mapping[str, Interval]]
    """points of each model, by who compared: the checks, the judge, or another; an end that the data leave open is None"""


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to a prompt of the before/after table; `rate` is over all prompts of the same kind."""

    model: str
    text: str
    passes: bool | None
    rate: Interval


@final
@dataclass(frozen=True, slots=True)
class BeforeAfterRow:
    prompt: str
    category: str
    behaviour: str
    """what a good answer does, e.g. "declines" """
    answers: tuple[Answer, ...]


@final
@dataclass(frozen=True, slots=True)
class Completed:
    """One line of evaluate/completions.jsonl."""

    id: str
    category: str
    prompt: str
    model: str
    mode: str
    sample: int | None
    text: str
    passes: bool | None
    length: int | None
    is_finished: bool | None
    judge: float | None


def evaluation_of(result: Json) -> Evaluation:
    """What the metrics.json of an evaluation holds."""
    return Evaluation(
        models=_models(result, "overall"),
        n_prompts=whole(result.get("n_prompts")),
        suites={text(name): _by_mode(value) for name, value in table(result.get("suites")).items()},
        overall=_by_mode(result.get("overall")),
        differences=_by_mode(result.get("differences")),
        suite_differences={
            text(name): _by_mode(value) for name, value in table(result.get("suite_differences")).items()
        },
        lengths={
            text(name): (number(table(value).get("mean")), number(table(value).get("finished")))
            for name, value in table(result.get("lengths")).items()
        },
        kl={text(name): interval(value) for name, value in table(result.get("kl")).items()},
        judge=_opinion(result.get("judge")),
        preferences=tuple(_preferred(table(one)) for one in rows(result.get("preferences"))),
        elo={
            text(who): {text(name): interval(points) for name, points in table(models).items()}
            for who, models in table(result.get("elo")).items()
        },
    )


def _models(found: Json, fallback: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text(name) for name in rows(found.get("models")) or table(found.get(fallback))))


def _by_mode(value: Any) -> dict[str, dict[str, Interval]]:
    """name -> mode -> interval; the names are those of models, or of two that are compared."""
    return {
        text(name): {text(mode): interval(rate) for mode, rate in table(modes).items()}
        for name, modes in table(value).items()
    }


def _opinion(value: Any) -> Opinion | None:
    found = table(value)
    if not found:
        return None
    return Opinion(
        counted=boolean(found.get("counted")),
        why=text(found.get("why")),
        versus=text(found.get("versus")),
        accuracy=interval(found.get("accuracy")),
        length_accuracy=interval(found.get("length_accuracy")),
        win_rate=interval(found.get("win_rate")),
        length_controlled=interval(found.get("length_controlled")),
    )


def _preferred(found: Json) -> Preferred:
    trust = table(found.get("trust"))
    return Preferred(
        judge=text(found.get("judge")),
        are_people=boolean(found.get("people")) is True,
        verdict=text(found.get("verdict")),
        counted=boolean(found.get("counted")),
        agreement=interval(trust.get("agreement")),
        flips=interval(trust.get("flips")),
        versus={text(pair): _versus(table(value)) for pair, value in table(found.get("versus")).items()},
    )


def _versus(found: Json) -> Versus:
    return Versus(
        win_rate=interval(found.get("win_rate")),
        length_controlled=interval(found.get("length_controlled")),
        won=whole(found.get("won")),
        tied=whole(found.get("tied")),
        lost=whole(found.get("lost")),
        unread=whole(found.get("unread")),
        flips=interval(found.get("flips")),
    )


def before_after_of(artifacts: Artifacts) -> tuple[BeforeAfterRow, ...]:
    found = artifacts.table("evaluate/before_after.json")
    return tuple(_row(table(row), _models(found, "")) for row in rows(found.get("rows")))


def _row(row: Json, models: tuple[str, ...]) -> BeforeAfterRow:
    answers = table(row.get("answers"))
    return BeforeAfterRow(
        prompt=text(row.get("prompt")),
        category=text(row.get("category")),
        behaviour=text(row.get("behaviour")),
        answers=tuple(_answer(model, answers.get(model)) for model in models or tuple(answers)),
    )


def _answer(model: str, value: Any) -> Answer:
    found = table(value)
    return Answer(text(model), text(found.get("text")), boolean(found.get("passes")), interval(found.get("rate")))


def completed(line: Json) -> Completed:
    prompt = text(line.get("prompt"))
    return Completed(
        id=text(line.get("id")) or prompt,
        category=text(line.get("category")),
        prompt=prompt,
        model=text(line.get("model")),
        mode=text(line.get("mode")),
        sample=whole(line.get("sample")),
        text=text(line.get("completion")),
        passes=boolean(line.get("passes")),
        length=whole(line.get("length")),
        is_finished=boolean(line.get("is_finished")),
        judge=number(line.get("judge")),
    )
