"""The page: one HTML file that needs no network, and a script for nothing but searching the answers."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from whelp.report import plots, words
from whelp.report.artifacts import Interval, Json, number, table
from whelp.report.collect import OPTIONAL, Preferences, RunData, Stage, collect
from whelp.report.plots import Line, from_log
from whelp.report.samples import Group, changes, fit, group, shorten, standing
from whelp.runs.files import write_text_atomic
from whelp.runs.manifest import REPORT, kind_of

_PAGE_BYTES = 1_900_000
_CHANGES_SHOWN = 6
_PPO_KEYS = {
    "objective/scores": "score",
    "objective/rlhf_reward": "score less the price of KL",
    "objective/kl": "KL to the SFT model, nats an answer",
    "objective/kl_coef": "price of a nat (kl_coef)",
    "objective/entropy": "entropy, nats a token",
    "response_length": "answer length, tokens",
    "finished": "answers that ended by themselves",
    "repetition": "repetition",
    "policy/clipfrac_avg": "share of ratios clipped",
    "sampler/mismatch": "sampler's mismatch",
    "val/first_ratio_error": "error of the first ratio",
}


@final
@dataclass(frozen=True, slots=True)
class Box:
    """One stage in the picture of the pipeline."""

    stage: Stage
    consumed: str
    made: str


def write_report(run_dir: Path) -> Path:
    """Read the artifacts of a run and write `report.html` into its folder. What is missing is said in its place.

    The same artifacts give the same bytes.

    Raises:
        RunError: `run_dir` is no folder, or cannot be written.
    """
    path = run_dir / REPORT
    write_text_atomic(path, render(collect(run_dir)))
    return path


def render(data: RunData) -> str:
    """The page as text."""
    groups = group(data.completions)
    template = _environment().get_template("report.html.jinja")
    context = _context(data, groups)
    without_samples = template.render(context | _samples([], 0)).encode("utf-8", "backslashreplace")
    return template.render(context | _samples(groups, _PAGE_BYTES - len(without_samples)))


def _context(data: RunData, groups: Sequence[Group]) -> dict[str, Any]:
    after = words.trained(data)
    changed = changes(groups, "sft", after)
    gains = {change.group.id: change.gain for change in changed}
    css, script = (
        resources.files("whelp.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("report.css", "search.js")
    )
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return {
        "data": data,
        "css": Markup(css),
        "script": Markup(script),
        "script_hash": f"sha256-{base64.b64encode(digest).decode('ascii')}",
        "standing": {each.id: standing(each, gains.get(each.id, 0.0), after) for each in groups},
        "conclusion": words.conclude(data),
        "trained": after,
        "boxes": _pipeline(data),
        "plots": _plots(data),
        "ppo_rows": _first_and_last(data.newest("ppo").log),
        "rollouts": [*data.rollouts[:3], *data.rollouts[3:][-3:]],
        "improved": [each for each in changed if each.gain > 0][:_CHANGES_SHOWN],
        "worsened": [each for each in reversed(changed) if each.gain < 0][:_CHANGES_SHOWN],
        "recipe": json.dumps(data.recipe, indent=2, ensure_ascii=False),
        "seeds": _seeds(data.recipe),
        "seconds": _total_seconds(data),
    }


def _samples(groups: Sequence[Group], budget: int) -> dict[str, Any]:
    shown = fit(groups, budget)
    return {"shown": shown, "linkable": {each.id for each in shown.groups}, "categories": _by_category(shown.groups)}


@cache
def _environment() -> Environment:
    """Autoescape is on for every template: prompts and answers are untrusted."""
    environment = Environment(
        loader=PackageLoader("whelp.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    w = words
    numbers = (number, w.decimal, w.percent, w.decimal_interval, w.percent_interval, w.points_interval, w.p_value)
    for function in (*numbers, w.duration, w.memory, w.moment, w.label, shorten):
        environment.filters[function.__name__] = function
    return environment


def training_plots(data: RunData) -> dict[str, Markup]:
    """The curves of what was trained, or still is; "" where there is nothing to draw yet."""
    return _ppo_plots(data.newest("ppo").log) | _losses(data)


def _plots(data: RunData) -> dict[str, Markup]:
    return training_plots(data) | _forests(data)


def _ppo_plots(log: Sequence[Json]) -> dict[str, Markup]:
    score = from_log(log, "objective/scores", "score")
    after_kl = from_log(log, "objective/rlhf_reward", "less KL", "sft")
    kl = from_log(log, "objective/kl", "KL")
    # An estimate of the KL may be below zero; its root is then taken as zero, where the policy starts.
    roots = [(math.sqrt(max(x, 0.0)), y) for x, y in zip(kl.y, score.y, strict=True) if x is not None]
    walk = Line("", [x for x, _ in roots], [y for _, y in roots])
    shares = [from_log(log, "finished", "ended", "rlhf"), from_log(log, "repetition", "repetition", "sft")]
    signs = [from_log(log, "flattery", "flattery", "rlhf"), from_log(log, "certainty", "certainty", "sft")]
    return {
        "ppo-reward": plots.curves("ppo-reward", [score, after_kl], "iteration"),
        "ppo-kl": plots.curves("ppo-kl", [kl], "iteration"),
        "ppo-frontier": plots.path("ppo-frontier", walk, "√KL", "Score against the root of the KL, by iteration"),
        "ppo-length": plots.curves("ppo-length", [from_log(log, "response_length", "tokens")], "iteration"),
        "ppo-entropy": plots.curves("ppo-entropy", [from_log(log, "objective/entropy", "entropy")], "iteration"),
        "ppo-shares": plots.curves("ppo-shares", shares, "iteration"),
        "ppo-signs": plots.curves("ppo-signs", signs, "iteration"),
    }


def _losses(data: RunData) -> dict[str, Markup]:
    sft, reward = data.stages["sft"], data.newest("reward")
    marks = {
        name: number(sft.result.get(key)) for name, key in (("before", "test_loss_before"), ("after", "test_loss"))
    }
    return {
        "sft-loss": plots.curves("sft-loss", [from_log(sft.log, "loss", "loss", "sft")], "step", marks),
        "reward-loss": plots.curves("reward-loss", [from_log(reward.log, "loss", "loss", "sft")], "step"),
        "reward-accuracy": plots.curves(
            "reward-accuracy", [from_log(reward.log, "accuracy", "accuracy", "sft")], "step"
        ),
    }


def _forests(data: RunData) -> dict[str, Markup]:
    checks = []
    if data.evaluation is not None:
        every = {"all prompts": data.evaluation.overall, **data.evaluation.suites}
        checks = [(name, _greedy(data.evaluation.models, models)) for name, models in every.items()]
    return {
        "checks": plots.forest("checks", checks, "Rate of checks passed by kind of prompt, with 95% intervals"),
        "differences": _differences(data),
        "reward-pairs": plots.forest("reward-pairs", _pairs(data.reward), "Accuracy of the reward model", 0.5),
        "judge-pairs": plots.forest("judge-pairs", _pairs(data.judge), "Accuracy of the judge", 0.5),
        "reward-curve": plots.forest(
            "reward-curve", _curve(data.reward), "Accuracy by the number of training prompts", 0.5
        ),
        "ppo-own-answers": plots.forest("ppo-own-answers", _own_answers(data), "Accuracy on the policy's answers", 0.5),
        "rounds": plots.forest("rounds", _rounds(data), "Accuracy on fresh pairs, by round", 0.5),
        "audit": plots.forest("audit", _probes(data), "How often each hack raises the score, with 95% intervals", 0.5),
        "reward-reliability": _reliability("reward-reliability", data.reward),
        "judge-reliability": _reliability("judge-reliability", data.judge),
    }


def _differences(data: RunData) -> Markup:
    """By how much more the trained model passes than SFT, by kind of prompt."""
    comparison = f"{words.trained(data)} - sft"
    if data.evaluation is None or comparison not in data.evaluation.suite_differences:
        return Markup("")
    every = {
        "all prompts": data.evaluation.differences.get(comparison, {}),
        **data.evaluation.suite_differences[comparison],
    }
    found = {name: modes.get("greedy", Interval()) for name, modes in every.items()}
    ends = [abs(end) for one in found.values() for end in (one.low, one.high) if end is not None]
    most = min(1.0, math.ceil(10 * max(ends, default=1.0) + 0.1) / 10)
    shown = [(name, [("rlhf" if one.differs else "base", one)]) for name, one in found.items()]
    alt = "Difference in the rate of checks passed by kind of prompt, with 95% intervals"
    return plots.forest("differences", shown, alt, 0.0, (-most, most))


def _reliability(name: str, found: Preferences | None) -> Markup:
    colors = {"as it is": "sft", "tempered": "rlhf"}
    bins = found.reliability if found else {}
    lines = [plots.Line(label, [x for x, _ in b], [y for _, y in b], colors[label]) for label, b in bins.items()]
    return plots.reliability(name, lines, "Share of pairs ordered rightly against how sure the model was")


def _greedy(models: Sequence[str], rates: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, Interval]]:
    known = [(model, rates.get(model, {}).get("greedy", Interval())) for model in models]
    return [(plots.MODEL_COLORS.get(model, "ink"), rate) for model, rate in known]


def _pairs(preferences: Preferences | None) -> list[tuple[str, list[tuple[str, Interval]]]]:
    if preferences is None:
        return []
    rates = {
        "all held-out pairs": ("rlhf", preferences.accuracy),
        "surface baseline": ("base", preferences.surface),
        "length alone": ("base", preferences.length),
        **{name: ("sft", rate) for name, rate in preferences.by_category.items()},
    }
    return [(name, [rate]) for name, rate in rates.items()]


def _curve(found: Preferences | None) -> list[tuple[str, list[tuple[str, Interval]]]]:
    points = found.learning_curve if found else []
    return [(f"{words.decimal(prompts)} prompts", [("sft", rate)]) for prompts, rate in points]


def _rounds(data: RunData) -> list[tuple[str, list[tuple[str, Interval]]]]:
    return [(f"before round {k}", [("sft", rate)]) for k, rate in data.rounds]


def _own_answers(data: RunData) -> list[tuple[str, list[tuple[str, Interval]]]]:
    windows = [(f"up to iteration {words.decimal(step)}", [("rlhf", rate)]) for step, rate in data.own_answers]
    held_out = data.reward.accuracy if data.reward else Interval()
    return [("held-out rankings", [("sft", held_out)]), *windows] if windows else []


def _probes(data: RunData) -> list[tuple[str, list[tuple[str, Interval]]]]:
    probes = data.audit.probes if data.audit else ()
    return [(one.name, [("rlhf" if one.verdict == "pays" else "base", one.best_liked.rises)]) for one in probes]


def _pipeline(data: RunData) -> list[Box]:
    def of(stage: str, key: str) -> str:
        return words.decimal(number(data.stages[stage].result.get(key)))

    model = shorten(str(data.recipe.get("model") or "the base model"), 60)
    losses = f"{of('sft', 'test_loss_before')} to {of('sft', 'test_loss')}"
    accuracy = number(data.stages["dpo"].result.get("accuracy"))
    told = {
        "sft": (f"{model} and {of('sft', 'sequences')} demonstrations", f"the SFT model, held-out loss {losses}"),
        "judge": ("rankings that nothing else learned from", f"a judge, {_right(data.judge)}"),
        "dpo": (
            "the SFT model and ranked answers",
            f"the DPO model, right on {words.percent(accuracy)} of held-out pairs",
        ),
        "labeller": ("rankings by people alone", f"a reward model, {_right(data.labeller)}"),
        "revise": ("the helpful model and the constitution", _revised(data)),
        "sft-revised": ("the base model, demonstrations and revisions", "the SFT model that PPO starts from"),
        "feedback": ("the SFT model's answers in pairs", _labelled(data)),
        "audit": ("good answers with and without hacks, and both policies' answers", _audited(data)),
        "evaluate": (f"all models and {of('evaluate', 'n_prompts')} prompts that trained nothing", "the tables above"),
    }
    shown = [stage for stage in data.stages.values() if stage.name not in OPTIONAL or stage.state != "not run"]
    return [Box(stage, *(told.get(stage.name) or _of_a_round(data, stage))) for stage in shown]


def _revised(data: RunData) -> str:
    found = data.revisions
    return f"{words.decimal(found and found.fates.get('kept'))} of {words.decimal(found and found.prompts)} answers, revised"


def _audited(data: RunData) -> str:
    found = data.audit
    return (
        "an audit" if found is None else f"{len(found.pays)} of {len(found.probes)} probes find a hack that is paid for"
    )


def _labelled(data: RunData) -> str:
    found = data.feedback
    if found is None:
        return "labels by a judge"
    who = {True: "a judge that is trusted", False: "a judge that is NOT trusted", None: "a judge"}[found.trusted]
    return f"{words.decimal(found.labels)} labels by {who}"


def _of_a_round(data: RunData, stage: Stage) -> tuple[str, str]:
    """What a stage that online rounds repeat consumed and made."""
    match kind_of(stage.name):
        case "reward":
            is_newest = stage is data.newest("reward")
            return "ranked answers", f"a reward model, {_right(data.reward)}" if is_newest else "a reward model"
        case "ppo":
            episodes = [number(row.get("episode")) for row in stage.log[-1:]]
            sampled = f"{words.decimal(episodes[0] if episodes else None)} sampled answers"
            made = "the RLHF model" if stage is data.newest("ppo") else "a policy, whose answers are ranked"
            return f"the SFT model, {_reward_source(data.recipe)} and {sampled}", made
        case _:
            prompts = words.decimal(number(stage.result.get("prompts")))
            return f"the newest policy's answers to {prompts} prompts", "rankings of them"


def _right(found: Preferences | None) -> str:
    accuracy, pairs = (found.accuracy.mean, found.pairs) if found else (None, None)
    return f"right on {words.percent(accuracy)} of {words.decimal(pairs)} held-out pairs"


def _reward_source(recipe: Json) -> str:
    named = str(table(recipe.get("ppo")).get("reward", "model"))
    return {"checker": "the prompts' own checks", "model": "the reward model"}.get(named, f"the reward {named}")


def _first_and_last(log: Sequence[Json]) -> list[tuple[str, float | None, float | None]]:
    rows = []
    for key, meaning in _PPO_KEYS.items():
        known = [value for row in log if (value := number(row.get(key))) is not None]
        if known:
            rows.append((meaning, known[0], known[-1]))
    return rows


def _by_category(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for each in groups:
        found.setdefault(each.category or "no category", []).append(each)
    return found


def _total_seconds(data: RunData) -> float | None:
    known = [stage.seconds for stage in data.stages.values() if stage.seconds is not None]
    return sum(known) if known else None


def _seeds(tree: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of every setting called seed."""
    found = []
    for key, value in table(tree).items():
        name = f"{path}{key}"
        if key == "seed":
            found.append((name, str(value)))
        found += _seeds(value, f"{name}.")
    return found
