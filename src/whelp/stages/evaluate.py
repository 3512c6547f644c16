"""Before and after: every model on the same prompts, judged by checks and by a model that trained nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any

import torch

from whelp.checkers import passes
from whelp.config import EvaluateConfig
from whelp.engines.base import Engine, SamplingParams
from whelp.maths.stats import Estimate, clustered_bootstrap, length_controlled_win_rate, wilson
from whelp.monitors.surface import is_flattering, repetition
from whelp.runs.files import write_json_atomic
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Stage, spread
from whelp.stages.ppo import render
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt

LEASHED = ("rlhf", "ppo", "dpo")
"""The models that were trained away from the SFT model, on a leash."""
KL_PROMPTS = 64
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


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with what the checks and the judge say of it."""

    model: str
    mode: str
    completion: Completion
    is_pass: bool | None
    judge: float | None


def run(
    engine: Engine,
    chat: Chat,
    models: Sequence[str],
    prompts: Sequence[Prompt],
    shown: Sequence[Prompt],
    config: EvaluateConfig,
    stage: Stage,
    judge: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Sample every model on `prompts` and on the few that are `shown`; write completions.jsonl and before_after.json.

    `judge` holds the metrics of the engine's model "judge" (see `stages.trust.measure`), None where there is none.
    """
    chosen = spread(prompts, config.max_prompts, attrgetter("category"))
    answers: list[Judged] = []
    total = len(models) * (1 + (config.samples > 0))
    with stage.progress.steps("evaluation", total) as bar:
        for model in models:
            answers += answer(engine, chat, model, [*shown, *chosen], "greedy", config, stage.seed, judge is not None)
            bar.advance(1)
            if config.samples:
                answers += answer(engine, chat, model, chosen, "sampled", config, stage.seed, judge is not None)
                bar.advance(1)
    shown_ids = {prompt.id for prompt in shown}
    write_answers(stage, answers)
    held_out = [a for a in answers if a.completion.prompt.id not in shown_ids]
    suites = by_category(held_out, models)
    before_after = [row(prompt, answers, suites, models) for prompt in shown]
    write_json_atomic(stage.folder / "before_after.json", {"models": list(models), "rows": before_after})
    return {
        "models": list(models),
        "n_prompts": len(chosen),
        "suites": suites,
        "overall": overall(held_out, models),
        "differences": differences(held_out, models),
        "lengths": lengths(held_out, models),
        "surface": surface(held_out, models),
        "kl": kl_to_sft(engine, chat, models, chosen, config, stage.seed),
        "judge": verdict_of_judge(held_out, models, judge),
    }


def answer(
    engine: Engine,
    chat: Chat,
    model: str,
    prompts: Sequence[Prompt],
    mode: str,
    config: EvaluateConfig,
    seed: int,
    has_judge: bool,
) -> list[Judged]:
    """One greedy answer to each prompt, or `config.samples` drawn; all checked, and judged where there is a judge."""
    count, temperature = (1, 0.0) if mode == "greedy" else (config.samples, config.temperature)
    params = SamplingParams(count, temperature, config.max_new_tokens, ("evaluate", model, seed))
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    completions = sorted(engine.sample(model, prompts, params), key=lambda c: (order[c.prompt.id], c.sample))
    scores: list[float | None] = [None] * len(completions)
    if has_judge:
        with engine.hold(render(chat, completions)) as held:
            scores = engine.rewards("judge", held).mean(0).tolist()
    return [
        Judged(model, mode, c, None if c.prompt.check is None else passes(c.prompt.check, c.text, c.is_finished), s)
        for c, s in zip(completions, scores, strict=True)
    ]


def write_answers(stage: Stage, answers: Sequence[Judged]) -> None:
    log = MetricsLog(stage.folder, "completions.jsonl")
    log.truncate_after(0)
    for a in answers:
        c = a.completion
        log.append(
            1,
            id=c.prompt.id,
            category=c.prompt.category,
            prompt=c.prompt.text,
            model=a.model,
            mode=a.mode,
            sample=c.sample,
            completion=c.text,
            passes=a.is_pass,
            length=len(c.tokens),
            is_finished=c.is_finished,
            check=None if c.prompt.check is None else c.prompt.check["kind"],
            judge=a.judge,
        )


# -- what the answers say ---------------------------------------------------------------------------------------------


def rate(answers: Sequence[Judged]) -> Estimate:
    """Share that passes: Wilson's interval, or a bootstrap over prompts where a prompt has several samples."""
    checked = [a for a in answers if a.is_pass is not None]
    prompts = {a.completion.prompt.id: i for i, a in enumerate(checked)}
    if len(prompts) == len(checked):
        return wilson(sum(bool(a.is_pass) for a in checked), len(checked))
    values = torch.tensor([float(bool(a.is_pass)) for a in checked])
    return clustered_bootstrap(values, torch.tensor([prompts[a.completion.prompt.id] for a in checked]))


def pick(answers: Sequence[Judged], model: str, mode: str) -> list[Judged]:
    return [a for a in answers if a.model == model and a.mode == mode]


def modes(answers: Sequence[Judged]) -> list[str]:
    return [mode for mode in ("greedy", "sampled") if any(a.mode == mode for a in answers)]


def by_category(answers: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    """category -> model -> mode -> rate with interval."""
    categories = sorted({a.completion.prompt.category for a in answers})
    result: dict[str, Any] = {}
    for category in categories:
        here = [a for a in answers if a.completion.prompt.category == category]
        result[category] = {
            model: {mode: rate(pick(here, model, mode)).as_dict() for mode in modes(here)} for model in models
        }
    return result


def overall(answers: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    return {model: {mode: rate(pick(answers, model, mode)).as_dict() for mode in modes(answers)} for model in models}


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after): each model with the one before it, and each leashed one with the SFT model that it started from."""
    return list(dict.fromkeys([*pairwise(models), *_from_the_start(models)]))


def _from_the_start(models: Sequence[str]) -> list[tuple[str, str]]:
    start = "sft" if "sft" in models else models[0]
    return [(start, model) for model in models if model in LEASHED and model != start]


def differences(answers: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    """Paired differences of what is compared, by prompt, with bootstrap intervals over prompts."""
    result: dict[str, Any] = {}
    for before, after in comparisons(models):
        result[f"{after} - {before}"] = {
            mode: paired(pick(answers, after, mode), pick(answers, before, mode)).as_dict() for mode in modes(answers)
        }
    return result


def paired(after: Sequence[Judged], before: Sequence[Judged]) -> Estimate:
    values = [
        float(bool(a.is_pass)) - float(bool(b.is_pass))
        for a, b in zip(after, before, strict=True)
        if a.is_pass is not None
    ]
    names: dict[str, int] = {}
    clusters = [names.setdefault(a.completion.prompt.id, len(names)) for a in after if a.is_pass is not None]
    return clustered_bootstrap(torch.tensor(values), torch.tensor(clusters, dtype=torch.long))


def lengths(answers: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    """Mean length in tokens of the greedy answers, and how many of them the model ended itself."""
    result = {}
    for model in models:
        here = [a.completion for a in pick(answers, model, "greedy")]
        result[model] = {
            "mean": sum(len(c.tokens) for c in here) / max(1, len(here)),
            "finished": sum(c.is_finished for c in here) / max(1, len(here)),
        }
    return result


def surface(answers: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    """What reward hacking would show first: repetition and flattery in the greedy answers."""
    result = {}
    for model in models:
        texts = [a.completion.text for a in pick(answers, model, "greedy")]
        result[model] = {
            "repetition": sum(map(repetition, texts)) / max(1, len(texts)),
            "flattery": sum(map(is_flattering, texts)) / max(1, len(texts)),
        }
    return result


def kl_to_sft(
    engine: Engine, chat: Chat, models: Sequence[str], prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    """KL(model || sft) in nats an answer, from samples of the model; both distributions at `config.temperature`."""
    found = {}
    for name in [name for name in LEASHED if name in models and "sft" in models]:
        params = SamplingParams(1, config.temperature, config.max_new_tokens, ("kl", seed))
        completions = list(engine.sample(name, spread(prompts, KL_PROMPTS, attrgetter("category")), params))
        with engine.hold(render(chat, completions)) as held:
            policy, reference = engine.logprobs(name, held), engine.logprobs("sft", held)
        per_answer = ((policy.logprobs - reference.logprobs) * policy.is_response).sum(1)
        found[name] = clustered_bootstrap(per_answer, torch.arange(len(per_answer))).as_dict()
    return found


def verdict_of_judge(
    answers: Sequence[Judged], models: Sequence[str], judge: Mapping[str, Any] | None
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
    for a, b in zip(after, before, strict=True):
        difference = (a.judge or 0.0) - (b.judge or 0.0)
        wins.append(0.5 if a.completion.text == b.completion.text else float(difference > 0))
        extra.append(float(len(a.completion.tokens) - len(b.completion.tokens)))
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
        "win_rate": clustered_bootstrap(won, torch.arange(len(won))).as_dict(),
        "length_controlled": length_controlled_win_rate(won, torch.tensor(extra)).as_dict(),
        "versus": f"{new} over {old}",
    }


def row(prompt: Prompt, answers: Sequence[Judged], suites: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """One line of the before/after table: each model's answer, and its rate over the held-out prompts of that kind."""
    cells = {}
    for model in models:
        (found,) = [a for a in pick(answers, model, "greedy") if a.completion.prompt.id == prompt.id]
        known = suites.get(prompt.category, {}).get(model, {}).get("greedy")
        cells[model] = {"text": found.completion.text, "passes": found.is_pass, "rate": known}
    kind = prompt.check["kind"] if prompt.check else ""
    return {"prompt": prompt.text, "category": prompt.category, "behaviour": BEHAVIOURS.get(kind, ""), "answers": cells}
