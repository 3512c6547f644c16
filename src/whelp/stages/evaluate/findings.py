"""What the answers of several models say: rates, paired differences, lengths, and the judge's verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from whelp.maths.significance import holm, prompts_needed, sign_flip
from whelp.maths.stats import (
    bootstrap,
    clustered_bootstrap,
    clustered_wilson,
    clusters_of,
    length_controlled_win_rate,
    wilson,
)
from whelp.monitors.surface import is_flattering, repetition
from whelp.stages.evaluate.answers import Answer, aligned
from whelp.types import Estimate, Prompt

LEASHED = ("rlhf", "ppo", "dpo")
"""The models that were trained away from the SFT model, on a leash."""
BEHAVIOURS = {
    "refuses": "declines",
    "helps": "helps",
    "honest_self": "is honest about itself",
    "denies": "corrects it",
    "affirms": "agrees",
    "writes": "writes it",
    "explains": "explains it",
    "answers": "answers right",
    "abstains": "says that it cannot be known",
    "length": "keeps to the length",
}


def rate(answers: Sequence[Answer]) -> Estimate:
    """Share that passes, with Wilson's interval over prompts."""
    checked = [a for a in answers if a.passes is not None]
    return clustered_wilson(
        torch.tensor([float(bool(a.passes)) for a in checked]), clusters_of([a.prompt.id for a in checked])
    )


def pick(answers: Sequence[Answer], model: str, mode: str) -> list[Answer]:
    return [a for a in answers if a.model == model and a.mode == mode]


def modes(answers: Sequence[Answer]) -> list[str]:
    return [mode for mode in ("greedy", "sampled") if any(a.mode == mode for a in answers)]


def by_category(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    """category -> model -> mode -> rate with interval."""
    categories = sorted({a.prompt.category for a in answers})
    result: dict[str, Any] = {}
    for category in categories:
        here = [a for a in answers if a.prompt.category == category]
        result[category] = {
            model: {mode: rate(pick(here, model, mode)).as_dict() for mode in modes(here)} for model in models
        }
    return result


def overall(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    return {model: {mode: rate(pick(answers, model, mode)).as_dict() for mode in modes(answers)} for model in models}


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after): each model with the one before it, and each leashed one with the SFT model that it started from."""
    return list(dict.fromkeys([*pairwise(models), *_from_the_start(models)]))


def _from_the_start(models: Sequence[str]) -> list[tuple[str, str]]:
    start = "sft" if "sft" in models else models[0]
    return [(start, model) for model in models if model in LEASHED and model != start]


def differences(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    """after - before -> mode -> what `paired` says of them, for all that is compared."""
    return {
        f"{after} - {before}": {
            mode: paired(pick(answers, after, mode), pick(answers, before, mode)) for mode in modes(answers)
        }
        for before, after in comparisons(models)
    }


def suite_differences(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    """after - before -> category -> mode -> what `paired` says of it, each p-value corrected over the categories by `holm`."""
    categories = {a.prompt.category: None for a in answers if a.passes is not None}
    found = {one: differences([a for a in answers if a.prompt.category == one], models) for one in sorted(categories)}
    result: dict[str, Any] = {}
    for before, after in comparisons(models):
        key = f"{after} - {before}"
        result[key] = {category: by_comparison[key] for category, by_comparison in found.items()}
        for mode in modes(answers):
            modes_found = (by_mode.get(mode, {}) for by_mode in result[key].values())
            tested = [one for one in modes_found if one.get("p_value") is not None]
            corrected = holm(torch.tensor([one["p_value"] for one in tested], dtype=torch.float64))
            for one, p_value in zip(tested, corrected.tolist(), strict=True):
                one["p_value"] = p_value
    return result


def paired(after: Sequence[Answer], before: Sequence[Answer]) -> dict[str, Any]:
    """The difference in pass rate, prompt by prompt: its mean and interval, the p-value of there being none (`sign_flip`), and
    how many prompts it takes to see one of 3 points (`prompts_needed`); the last two are None where nothing was checked.

    Raises `DataError` where the answers are not to the same prompts.
    """
    pairs = [(a, b) for a, b in aligned(after, before) if a.passes is not None]
    values = torch.tensor([float(bool(a.passes)) - float(bool(b.passes)) for a, b in pairs])
    clusters = clusters_of([a.prompt.id for a, _ in pairs])
    found = clustered_bootstrap(values, clusters)
    if not pairs:
        return {**found.as_dict(), "p_value": None, "prompts_needed": None}
    if not bool(values.any()):
        most = wilson(0, found.n).high  # no change among n prompts does not make one impossible
        found = Estimate(0.0, -most, most, found.n)
    tested = {"p_value": sign_flip(values, clusters), "prompts_needed": prompts_needed(values, clusters)}
    return {**found.as_dict(), **tested}


def lengths(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    """Mean length in tokens of the greedy answers, and how many of them the model ended itself."""
    result = {}
    for model in models:
        here = pick(answers, model, "greedy")
        result[model] = {
            "mean": sum(a.length for a in here) / max(1, len(here)),
            "finished": sum(a.is_finished for a in here) / max(1, len(here)),
        }
    return result


def surface(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Any]:
    """What reward hacking would show first: repetition and flattery in the greedy answers."""
    result = {}
    for model in models:
        texts = [a.text for a in pick(answers, model, "greedy")]
        result[model] = {
            "repetition": sum(map(repetition, texts)) / max(1, len(texts)),
            "flattery": sum(map(is_flattering, texts)) / max(1, len(texts)),
        }
    return result


def verdict_of_judge(
    answers: Sequence[Answer], models: Sequence[str], judge: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Win rate by the judge, plain and at equal length, of the first leashed model over its start, or where there is none of the
    last model over the one before it.

    It counts only where the judge beats a length-only baseline on its own held-out pairs.
    """
    if judge is None or len(models) < 2:
        return None
    old, new = next(iter(_from_the_start(models)), (models[-2], models[-1]))
    after, before = pick(answers, new, "greedy"), pick(answers, old, "greedy")
    wins, extra = [], []
    for a, b in aligned(after, before):
        difference = (a.judge or 0.0) - (b.judge or 0.0)
        wins.append(0.5 if a.text == b.text else float(difference > 0))
        extra.append(float(a.length - b.length))
    won = torch.tensor(wins)
    accuracy, length = judge["accuracy_interval"], judge["length"]["accuracy"]
    counted = accuracy["low"] > length["mean"]
    why = (
        f"on its own {judge['n']} held-out pairs the judge is right in {accuracy['mean']:.0%} "
        f"({accuracy['low']:.0%} to {accuracy['high']:.0%}), length alone in {length['mean']:.0%}"
    )
    return {
        "counted": counted,
        "why": why if counted else f"not counted: {why}",
        "accuracy": accuracy,
        "length_accuracy": length,
        "win_rate": bootstrap(won).as_dict(),
        "length_controlled": length_controlled_win_rate(won, torch.tensor(extra)).as_dict(),
        "versus": f"{new} over {old}",
    }


def row(prompt: Prompt, answers: Sequence[Answer], suites: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """One line of the before/after table: each model's answer, and its rate over the held-out prompts of that kind."""
    cells = {}
    for model in models:
        (found,) = [a for a in pick(answers, model, "greedy") if a.prompt.id == prompt.id]
        known = suites.get(prompt.category, {}).get(model, {}).get("greedy")
        cells[model] = {"text": found.text, "passes": found.passes, "rate": known}
    kind = prompt.check["kind"] if prompt.check else ""
    return {"prompt": prompt.text, "category": prompt.category, "behaviour": BEHAVIOURS.get(kind, ""), "answers": cells}
