"""Numbers as people read them, and what may be concluded from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, final

from whelp.report.artifacts import Interval, table
from whelp.report.collect import RunData
from whelp.report.evaluation import Evaluation

NONE = "–"
_LABELS = {
    "base": "Base",
    "sft": "SFT",
    "rlhf": "RLHF",
    "ppo": "PPO",
    "dpo": "DPO",
    "reward": "Reward model",
    "judge": "Judge",
    "label": "Ranking of answers",
    "evaluate": "Evaluation",
    "helpful": "Helpful",
    "labeller": "Labeller",
    "revise": "Revision",
    "sft-revised": "SFT on revisions",
    "feedback": "AI feedback",
    "audit": "Audit",
}


@final
@dataclass(frozen=True, slots=True)
class Conclusion:
    """The one sentence at the top, and what it does not say."""

    kind: Literal["better", "worse", "none", "unknown"]
    sentence: str
    limits: tuple[str, ...]


def label(name: str) -> str:
    """A model's or stage's name as it is written in text."""
    kind, _, number = name.partition("-")
    return f"{_LABELS[kind]}, round {number}" if kind in _LABELS and number.isdecimal() else _LABELS.get(name, name)


def decimal(value: float | None) -> str:
    """Whole numbers in full, others to three significant digits."""
    if value is None:
        return NONE
    shown = f"{value:,.0f}" if abs(value) < 1e15 and (abs(value) >= 100 or value == int(value)) else f"{value:.3g}"
    return _minus("0" if shown == "-0" else shown)


def percent(value: float | None) -> str:
    return NONE if value is None else _minus(f"{100 * value:.0f}%")


def percent_interval(rate: Interval) -> str:
    """`62% (54 to 70)`"""
    bounds = (
        f" ({100 * rate.low:.0f} to {100 * rate.high:.0f})" if rate.low is not None and rate.high is not None else ""
    )
    return percent(rate.mean) + bounds if rate.is_known else NONE


def points(value: float | None) -> str:
    """Percentage points without their unit: whole ones, but never a rounded zero where there is a difference."""
    if value is None:
        return NONE
    scaled = 100 * value
    if abs(scaled) < 1e-9:
        return "0"
    return _minus(f"{scaled:.0f}" if abs(scaled) >= 1 else f"{scaled:.1g}")


def in_points(value: float) -> str:
    """`1 point`, `12 points`"""
    return f"{points(value)} point{'' if points(abs(value)) == '1' else 's'}"


def points_interval(difference: Interval) -> str:
    """`+12 points (5 to 19)`"""
    if difference.mean is None:
        return NONE
    bounds = f" ({points(difference.low)} to {points(difference.high)})" if difference.has_bounds else ""
    return f"{'+' if difference.mean > 0 else ''}{in_points(difference.mean)}{bounds}"


def moment(iso: str) -> str:
    """`2026-01-02 03:04 UTC` of the ISO time that runs write; other text as it is."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d\+00:00", iso)
    return f"{match[1]} {match[2]} UTC" if match else iso


def decimal_interval(value: Interval) -> str:
    """`6.2 (5.1 to 7.4)`"""
    bounds = f" ({decimal(value.low)} to {decimal(value.high)})" if value.has_bounds else ""
    return decimal(value.mean) + bounds if value.is_known else NONE


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def memory(mebibytes: float | None) -> str:
    if mebibytes is None:
        return NONE
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def conclude(data: RunData) -> Conclusion:
    """What the greedy checks show of RLHF (or DPO) against SFT, or against the base model where there is no SFT; of SFT against
    the base model where there is neither. Further sentences say what samples show, single suites, and a judge that counts."""
    pairs = (("rlhf", "sft"), ("rlhf", "base"), ("dpo", "sft"), ("dpo", "base"), ("sft", "base"))
    for better, worse in pairs:
        modes = data.evaluation.differences.get(f"{better} - {worse}", {}) if data.evaluation else {}
        difference, sampled = modes.get("greedy", Interval()), modes.get("sampled", Interval())
        if difference.is_known:
            kind, sentence = conclude_difference(label(better), label(worse), difference)
            if sampled.is_known:
                sentence = f"Greedy: {sentence} Sampled: {conclude_difference(label(better), label(worse), sampled)[1]}"
            if better == "sft":
                sentence += " RLHF was not compared."
            sentence += _by_suite(data.evaluation, f"{better} - {worse}")
            sentence += _judged(data.evaluation, f"{better} over {worse}")
            return Conclusion(kind, sentence, _limits(data))
    return Conclusion("unknown", f"Nothing can be concluded yet: {_why_unknown(data)}.", ())


def conclude_difference(
    name: str, other: str, difference: Interval, tests: int = 1
) -> tuple[Literal["better", "worse", "none", "unknown"], str]:
    """What a paired difference in pass rate says, and in one plain sentence what it does not. A model is better where the
    interval is above zero and the p-value, if there is one, below 5%; that was corrected over so many `tests`."""
    mean, low, high = difference.mean or 0.0, difference.low, difference.high
    amount = f"{in_points(abs(mean))} {'more' if mean > 0 else 'fewer'} checks than {other}"
    amount = amount if mean else f"as many checks as {other}"
    if low is None or high is None:
        return "unknown", f"{name} passes {amount}, but no interval was recorded: nothing can be concluded."
    p = difference.p_value
    chance = "" if p is None else f"{p_value(p)} after correction over {tests} suites" if tests > 1 else p_value(p)
    of = (f", {difference.n} prompts" if difference.n else "") + (f"; {chance}" if chance else "")
    if low > 0 or high < 0:
        span = f"95% interval {points(min(abs(low), abs(high)))} to {points(max(abs(low), abs(high)))}"
        if difference.differs:
            return "better" if low > 0 else "worse", f"{name} passes {amount} ({span}{of})."
        return (
            "none",
            f"{name} passes {amount} ({span}{of}), but that may be chance: no difference was shown{_more(difference)}.",
        )
    span = f"95% interval {points(low)} to {points(high)}{of}"
    return (
        "none",
        f"{name} passes {amount}, but the interval includes zero ({span}): no difference was shown{_more(difference)}.",
    )


def conclusions(evaluation: Evaluation) -> list[str]:
    """A sentence for all that was compared, and one for each suite that differs when all of them are looked at."""
    found = []
    for comparison, modes in evaluation.differences.items():
        after, before = (label(name) for name in comparison.split(" - ", 1))
        for mode, difference in modes.items():
            said = f"no answer of {after} and {before} was checked: nothing can be concluded."
            if difference.is_known:
                said = conclude_difference(after, before, difference)[1]
            found.append(f"{mode.capitalize()}: {said}")
            suites, tests = _differing(evaluation, comparison, mode)
            for name, one in suites.items():
                found.append(f"{mode.capitalize()}, {name}: {conclude_difference(after, before, one, tests)[1]}")
    return found


def preferences(evaluation: Evaluation) -> list[str]:
    """A sentence for each two models that people compared, or a language model."""
    found = []
    for one in evaluation.preferences:
        found += [one.verdict] if one.verdict else []
        for pair, said in one.versus.items():
            after, before = (label(name) for name in pair.split(" over ", 1))
            if not said.win_rate.is_known:
                found.append(f"{one.judge}: no answer of {after} and {before} was judged.")
                continue
            unread = f"; {said.unread} were not judged" if said.unread else ""
            found.append(
                f"{one.judge}: {after} is preferred to {before} in {percent_interval(said.win_rate)}, at equal length in "
                f"{percent_interval(said.length_controlled)}, of {said.win_rate.n} answers ({said.won} won, {said.tied} tied, "
                f"{said.lost} lost{unread})."
            )
    return found


def _differing(evaluation: Evaluation, comparison: str, mode: str) -> tuple[dict[str, Interval], int]:
    """The suites in which two models differ, of so many for which there is a p-value."""
    suites = evaluation.suite_differences.get(comparison, {})
    found = {name: modes.get(mode, Interval()) for name, modes in suites.items()}
    tested = {name: one for name, one in found.items() if one.p_value is not None}
    differ = {name: one for name, one in tested.items() if one.differs}
    return differ, len(tested)


def p_value(p: float) -> str:
    """`p = 0.02`"""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2g}" if f"{p:.2g}" != "0.05" else f"p = {p:.3g}"


def _more(difference: Interval) -> str:
    """How many prompts would show a small difference, to two digits."""
    if difference.prompts_needed is None or difference.n is None:
        return ""
    more = difference.prompts_needed - difference.n
    if more <= 0:
        return ", and one of 3 points would most likely have been"
    unit = 10 ** max(0, len(str(more)) - 2)
    return f"; about {-(-more // unit) * unit:,} more prompts would show one of 3 points"


def _by_suite(evaluation: Evaluation | None, comparison: str) -> str:
    suites, tests = _differing(evaluation, comparison, "greedy") if evaluation else ({}, 0)
    if tests < 2:
        return ""
    shown = ", ".join(f"{name} ({points_interval(one)})" for name, one in suites.items())
    return (
        f" By suite, with p-values corrected over {tests}: {f'a difference in {shown}' if shown else 'no difference'}."
    )


def _judged(evaluation: Evaluation | None, versus: str) -> str:
    judge = evaluation.judge if evaluation else None
    if judge is None or not judge.counted or judge.versus != versus or not judge.win_rate.is_known:
        return ""
    better, worse = (label(name) for name in versus.split(" over "))
    rates = f"in {percent_interval(judge.win_rate)} of the greedy answers"
    if judge.length_controlled.is_known:
        rates += f", in {percent(judge.length_controlled.mean)} at equal length"
    return f" The judge prefers {better} to {worse} {rates}."


def _why_unknown(data: RunData) -> str:
    state = data.stages["evaluate"].state
    if state == "not run":
        return "the models were not evaluated"
    return (
        "the evaluation has not finished"
        if state == "unfinished"
        else "the evaluation holds no comparison of two models"
    )


def _limits(data: RunData) -> tuple[str, ...]:
    """What the sentence must not be taken for."""
    limits = ["One run with one seed: the interval covers the choice of prompts, not what another seed would give."]
    after = trained(data)
    ppo, rounds = table(data.recipe.get("ppo")), table(data.recipe.get("rounds"))
    taught = f"{ppo.get('reward')} {rounds.get('label') if rounds.get('n') else ''}"
    if after == "rlhf" and "checker" in taught.split():
        limits.append(
            "PPO was rewarded by these same checks, on other prompts: passing more of them is what it was trained for, "
            "and is not by itself a better assistant."
        )
    else:
        limits.append(
            "Checks are rules that read an answer's text. They do not see whether it is kind, wise or well written."
        )
    if after == "rlhf" and data.reward and data.reward.trusted is False:
        limits.append("The reward model was not trusted: a high reward says little here.")
    if fell := _fell(data.evaluation, after):
        kinds = ", ".join(fell)
        limits.append(f"By kind of prompt, {label(after)} passes at least 10 points fewer checks than SFT in {kinds}.")
    return tuple(limits)


def trained(data: RunData) -> str:
    """The model that the report is about: RLHF's, or DPO's where there is no other."""
    models = {row.model for row in data.completions}
    return "dpo" if "dpo" in models and "rlhf" not in models else "rlhf"


def _fell(evaluation: Evaluation | None, trained: str) -> list[str]:
    fell = []
    for name, models in evaluation.suites.items() if evaluation else ():
        before = models.get("sft", {}).get("greedy", Interval()).mean
        after = models.get(trained, {}).get("greedy", Interval()).mean
        if before is not None and after is not None and before - after >= 0.0999:
            fell.append(f"{name} ({percent(before)} to {percent(after)})")
    return fell


def _minus(shown: str) -> str:
    return shown.replace("-", "\N{MINUS SIGN}", 1) if shown.startswith("-") else shown
