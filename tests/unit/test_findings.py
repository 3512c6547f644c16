"""What an evaluation finds in answers: pairs that belong together, and differences with what they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import scipy.stats

from whelp.errors import DataError
from whelp.stages.evaluate.answers import Answer, aligned
from whelp.stages.evaluate.findings import by_category, differences, overall, paired, suite_differences
from whelp.types import Message, Prompt


def answer(
    model: str, id: str, passes: bool | None, sample: int = 0, category: str = "all", mode: str = "greedy"
) -> Answer:
    prompt = Prompt(id, (Message("user", id),), category, None if passes is None else {"kind": "refuses"})
    return Answer(prompt, model, mode, sample, "text", passes, 5, True, None)


def suite(model: str, passes: Sequence[bool | None], category: str = "all") -> list[Answer]:
    return [answer(model, f"{category}-{i}", one, category=category) for i, one in enumerate(passes)]


def test_answers_are_paired_by_prompt_and_sample_and_not_by_place() -> None:
    before = [answer("sft", id, True, sample) for id in "ab" for sample in (0, 1)]
    after = [answer("rlhf", one.prompt.id, True, one.sample) for one in reversed(before)]
    pairs = aligned(after, before)
    assert [(a.prompt.id, a.sample) for a, _ in pairs] == [("b", 1), ("b", 0), ("a", 1), ("a", 0)]
    assert all((a.model, b.model) == ("rlhf", "sft") for a, b in pairs)
    assert all((a.prompt.id, a.sample) == (b.prompt.id, b.sample) for a, b in pairs)


def test_what_either_side_lacks_is_named() -> None:
    before, after = suite("sft", [True] * 9), suite("rlhf", [True] * 9)
    with pytest.raises(DataError) as error:
        aligned([*after[1:], answer("rlhf", "new", True), replace(after[2], sample=1)], before[:-6])
    assert str(error.value) == (
        "answers cannot be compared in pairs: rlhf (greedy) lacks all-0 (sample 0); sft (greedy) lacks all-3 (sample 0), "
        "all-4 (sample 0), all-5 (sample 0), all-6 (sample 0), all-7 (sample 0) and 3 more. Let both models answer the same "
        "prompts, with one number of samples."
    )
    with pytest.raises(DataError, match=r"a model without answers lacks all-0 \(sample 0\)"):
        aligned([], before)
    with pytest.raises(DataError, match=r"rlhf \(greedy\) has all-1 \(sample 0\) twice"):
        aligned([*after, after[1]], before)
    with pytest.raises(DataError, match="lacks all-8"):
        differences([*before, *after[:-1]], ["sft", "rlhf"])


def test_a_difference_has_what_it_is_worth() -> None:
    """30 prompts: 12 gained, 2 lost. Of single answers the p-value is McNemar's mid-p."""
    found = paired(
        suite("b", [True] * 18 + [False] * 12), suite("a", [True] * 6 + [False] * 12 + [True] * 2 + [False] * 10)
    )
    assert found["mean"] == pytest.approx(10 / 30)
    assert 0.05 < found["low"] < 10 / 30 < found["high"] < 0.6
    exact = scipy.stats.binomtest(2, 14).pvalue - scipy.stats.binom.pmf(2, 14, 0.5)
    assert found["p_value"] == pytest.approx(exact, abs=0.003)
    assert found["n"] == 30
    assert found["prompts_needed"] > 2000


def test_no_change_at_all_leaves_a_change_possible() -> None:
    found = paired(suite("b", [True, False] * 50), suite("a", [True, False] * 50))
    assert (found["mean"], found["p_value"], found["n"]) == (0.0, 1.0, 100)
    assert found["high"] == -found["low"] == pytest.approx(0.037, abs=0.001)


def test_what_has_no_check_has_no_difference() -> None:
    answers = suite("a", [None] * 5) + suite("b", [None] * 5)
    found = differences(answers, ["a", "b"])["b - a"]["greedy"]
    assert math.isnan(found["mean"]) and (found["n"], found["p_value"], found["prompts_needed"]) == (0, None, None)
    assert suite_differences(answers, ["a", "b"]) == {"b - a": {}}
    assert math.isnan(overall(answers, ["a"])["a"]["greedy"]["mean"])
    assert by_category(answers, ["a"])["all"]["a"]["greedy"]["n"] == 0


def test_p_values_of_suites_are_corrected_over_them() -> None:
    passes = {"much": [True] * 20, "some": [True] * 14 + [False] * 6, "none": [True] * 10 + [False] * 10}
    before = [True] * 10 + [False] * 10
    answers = [one for name, after in passes.items() for one in suite("a", before, name) + suite("b", after, name)]
    answers += suite("a", [None] * 3, "open") + suite("b", [None] * 3, "open")
    found = suite_differences(answers, ["a", "b"])["b - a"]
    assert list(found) == ["much", "none", "some"]
    alone = {
        name: differences([a for a in answers if a.prompt.category == name], ["a", "b"])["b - a"] for name in found
    }
    single = {name: one["greedy"]["p_value"] for name, one in alone.items()}
    corrected = {name: one["greedy"]["p_value"] for name, one in found.items()}
    assert single["much"] < single["some"] < single["none"] == 1.0
    assert corrected == pytest.approx({"much": 3 * single["much"], "some": 2 * single["some"], "none": 1.0})


def test_samples_of_one_prompt_count_as_one_prompt() -> None:
    answers = [
        answer(model, str(i), i % 10 < (8 if model == "b" else 6), sample, mode="sampled")
        for model in "ab" for i in range(60) for sample in range(4)
    ]  # fmt: skip
    found = differences(answers, ["a", "b"])["b - a"]
    rate = overall(answers, ["b"])["b"]["sampled"]
    assert list(found) == ["sampled"]
    assert found["sampled"]["n"] == rate["n"] == 60
    single = [one for one in answers if one.sample == 0]
    once = differences(single, ["a", "b"])["b - a"]["sampled"]
    assert found["sampled"]["p_value"] == pytest.approx(once["p_value"], abs=0.01)
    assert (rate["low"], rate["high"]) == pytest.approx((0.68, 0.88), abs=0.02)
