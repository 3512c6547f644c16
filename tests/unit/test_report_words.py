"""The report in words: its conclusion says what the intervals allow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_helpers import change_json, difference

from whelp.report.artifacts import Interval
from whelp.report.collect import collect
from whelp.report.render import render
from whelp.report.words import (
    conclude,
    conclude_difference,
    conclusions,
    duration,
    memory,
    p_value,
    percent_interval,
    points_interval,
)

ZERO = ", but the interval includes zero (95% interval {}, 140 prompts): no difference was shown."


@pytest.mark.parametrize(
    ("low", "mean", "high", "kind", "passes", "rest"),
    [
        (0.05, 0.12, 0.19, "better", "12 points more checks than", " (95% interval 5 to 19, 140 prompts)."),
        (0.002, 0.04, 0.08, "better", "4 points more checks than", " (95% interval 0.2 to 8, 140 prompts)."),
        (0.002, 0.01, 0.018, "better", "1 point more checks than", " (95% interval 0.2 to 2, 140 prompts)."),
        (-0.14, -0.08, -0.02, "worse", "8 points fewer checks than", " (95% interval 2 to 14, 140 prompts)."),
        (-0.05, 0.02, 0.09, "none", "2 points more checks than", ZERO.format("\N{MINUS SIGN}5 to 9")),
        (0.0, 0.05, 0.1, "none", "5 points more checks than", ZERO.format("0 to 10")),
        (-0.1, 0.0, 0.1, "none", "as many checks as", ZERO.format("\N{MINUS SIGN}10 to 10")),
        (None, 0.04, None, "unknown", "4 points more checks than", ", but no interval was recorded: nothing can be concluded."),
    ],
)  # fmt: skip
def test_the_conclusion_says_what_the_interval_allows(
    run: Path, low: float | None, mean: float, high: float | None, kind: str, passes: str, rest: str
) -> None:
    change_json(run / "evaluate/metrics.json", differences={"rlhf - sft": difference(low, mean, high)}, judge=None)
    conclusion = conclude(collect(run))
    assert (conclusion.kind, conclusion.sentence) == (kind, f"RLHF passes {passes} SFT{rest}")


def changed(difference: float, low: float, high: float, p: float, needed: int, n: int = 140) -> Interval:
    return Interval(difference, low, high, n, p, needed)


@pytest.mark.parametrize(
    ("difference", "tests", "kind", "sentence"),
    [
        (changed(0.031, 0.004, 0.059, 0.0213, 900), 8, "better",
         "RLHF passes 3 points more checks than SFT (95% interval 0.4 to 6, 140 prompts; p = 0.021 after correction "
         "over 8 suites)."),
        (changed(-0.08, -0.14, -0.02, 0.00004, 900), 1, "worse",
         "RLHF passes 8 points fewer checks than SFT (95% interval 2 to 14, 140 prompts; p < 0.001)."),
        (changed(0.04, 0.01, 0.07, 0.06, 1031), 8, "none",
         "RLHF passes 4 points more checks than SFT (95% interval 1 to 7, 140 prompts; p = 0.06 after correction over 8 suites), "
         "but that may be chance: no difference was shown; about 900 more prompts would show one of 3 points."),
        (changed(-0.01, -0.03, 0.01, 0.34, 141), 1, "none",
         "RLHF passes 1 point fewer checks than SFT, but the interval includes zero (95% interval −3 to 1, 140 prompts; "
         "p = 0.34): no difference was shown; about 1 more prompts would show one of 3 points."),
        (changed(0.0, -0.01, 0.01, 1.0, 80), 1, "none",
         "RLHF passes as many checks as SFT, but the interval includes zero (95% interval −1 to 1, 140 prompts; p = 1): "
         "no difference was shown, and one of 3 points would most likely have been."),
    ],
)  # fmt: skip
def test_a_sentence_says_what_can_be_told_and_how_much_more_it_would_take(
    difference: Interval, tests: int, kind: str, sentence: str
) -> None:
    assert conclude_difference("RLHF", "SFT", difference, tests) == (kind, sentence)


def test_p_values_are_never_rounded_to_the_level() -> None:
    assert [p_value(p) for p in (0.0496, 0.05, 0.0504, 0.001, 0.00099)] == [
        "p = 0.0496", "p = 0.05", "p = 0.0504", "p = 0.001", "p < 0.001"]  # fmt: skip


def test_suites_are_looked_at_together(run: Path) -> None:
    def suite(p: float) -> dict[str, object]:
        return {"greedy": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 24, "p_value": p, "prompts_needed": 500}}

    unchecked = {"greedy": {"mean": None, "low": None, "high": None, "n": 0, "p_value": None, "prompts_needed": None}}
    suites = {"rlhf - sft": {"self": suite(0.01), "writing": suite(0.2), "red": unchecked}}
    change_json(run / "evaluate/metrics.json", suite_differences=suites, judge=None)
    data = collect(run)
    assert conclude(data).sentence.endswith(
        " By suite, with p-values corrected over 2: a difference in self (+20 points (10 to 30))."
    )
    said = conclusions(data.evaluation)
    assert said[1] == (
        "Greedy, self: RLHF passes 20 points more checks than SFT (95% interval 10 to 30, 24 prompts; p = 0.01 after "
        "correction over 2 suites)."
    )
    assert [line.split(" passes")[0] for line in said] == ["Greedy: RLHF", "Greedy, self: RLHF", "Greedy: SFT"]
    change_json(run / "evaluate/metrics.json", suite_differences={"rlhf - sft": {"a": suite(0.4), "b": suite(0.2)}})
    assert conclude(collect(run)).sentence.endswith(" By suite, with p-values corrected over 2: no difference.")


@pytest.mark.usefixtures("plain")
def test_without_rlhf_the_conclusion_is_about_sft(run: Path) -> None:
    change_json(run / "evaluate/metrics.json", differences={"sft - base": difference(0.3, 0.39, 0.47)})
    assert conclude(collect(run)).sentence == (
        "SFT passes 39 points more checks than Base (95% interval 30 to 47, 140 prompts). RLHF was not compared."
    )


def test_without_sft_the_conclusion_is_about_the_base_model(run: Path) -> None:
    change_json(run / "evaluate/metrics.json", differences={"rlhf - base": difference(0.01, 0.04, 0.07)})
    assert conclude(collect(run)).sentence == (
        "RLHF passes 4 points more checks than Base (95% interval 1 to 7, 140 prompts)."
    )


def test_dpo_stands_in_where_there_is_no_rlhf(run: Path) -> None:
    lines = run / "evaluate/completions.jsonl"
    lines.write_text(lines.read_text().replace('"rlhf"', '"dpo"'))
    change_json(run / "evaluate/metrics.json", differences={"dpo - base": difference(0.01, 0.04, 0.07)}, judge=None)
    assert conclude(collect(run)).sentence.startswith("DPO passes 4 points more checks than Base")
    assert "Biggest changes from SFT to DPO" in render(collect(run))


def test_samples_have_a_sentence_of_their_own(run: Path) -> None:
    modes = difference(-0.05, 0.02, 0.09) | {"sampled": difference(0.02, 0.07, 0.12)["greedy"]}
    change_json(run / "evaluate/metrics.json", differences={"rlhf - sft": modes}, judge=None)
    conclusion = conclude(collect(run))
    assert conclusion.kind == "none"
    assert conclusion.sentence == (
        f"Greedy: RLHF passes 2 points more checks than SFT{ZERO.format(chr(0x2212) + '5 to 9')} "
        "Sampled: RLHF passes 7 points more checks than SFT (95% interval 2 to 12, 140 prompts)."
    )


def test_a_judge_that_counts_is_heard(run: Path) -> None:
    heard = conclude(collect(run)).sentence
    assert heard.endswith(
        " The judge prefers RLHF to SFT in 63% (55 to 71) of the greedy answers, in 61% at equal length."
    )
    judge = collect(run).evaluation.judge
    for change in ({"counted": False}, {"versus": "rlhf over base"}):
        values = dataclasses.asdict(judge) | change
        change_json(run / "evaluate/metrics.json", judge=values)
        assert "judge" not in conclude(collect(run)).sentence


def test_the_conclusion_names_its_limits(run: Path) -> None:
    def starts() -> list[str]:
        return [limit[:8] for limit in conclude(collect(run)).limits]

    assert starts() == ["One run ", "Checks a", "By kind "]
    change_json(run / "manifest.json", recipe={"ppo": {"reward": "checker"}})
    change_json(run / "reward/metrics.json", trusted=False)
    assert starts() == ["One run ", "PPO was ", "The rewa", "By kind "]


def test_words() -> None:
    assert [duration(s) for s in (None, 3.14, 59.4, 59.6, 201, 3600, 36061)] == [
        "–", "3.1 s", "59 s", "1 min 00 s", "3 min 21 s", "1 h 00 min", "10 h 01 min"]  # fmt: skip
    assert [memory(m) for m in (None, 900, 1843.2)] == ["–", "900 MiB", "1.8 GiB"]
    assert percent_interval(Interval(0.5)) == "50%" and percent_interval(Interval()) == "–"
    assert points_interval(Interval(-0.08, -0.14, -0.02)) == "−8 points (−14 to −2)"


def test_what_rounding_alone_left_is_nothing() -> None:
    assert points_interval(Interval(-1e-17, -1e-16, 1e-17, 9)) == "0 points (0 to 0)"
