"""The report in words: its conclusion says what the intervals allow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_helpers import change_json, difference

from whelp.report.artifacts import Interval
from whelp.report.collect import collect
from whelp.report.render import render
from whelp.report.words import conclude, duration, memory, percent_interval, points_interval

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
