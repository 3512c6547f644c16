"""Whether PPO's reward orders the policy's own answers as their checks do."""

from __future__ import annotations

import random

import pytest
import torch

from whelp.stages import on_policy
from whelp.types import Completion, Message, Prompt

PASSES, FAILS = "Tea is fine with milk or with lemon, and it is good cold too.", "No."
CHECK = {"kind": "helps", "any": ["fine"]}


def completion(prompt: str, passes: bool, sample: int = 0, check: dict | None = CHECK) -> Completion:
    asked = Prompt(prompt, (Message("user", "How do I drink tea?"),), check=check)
    return Completion(asked, PASSES if passes else FAILS, (1,), (0.0,), True, sample)


def test_pairs_are_counted_as_by_a_slow_loop() -> None:
    draw = random.Random(0)
    answers = [(prompt, draw.random() < 0.5, float(draw.randrange(4))) for prompt in "abcdef" for _ in range(4)]
    completions = [completion(prompt, passes, i) for i, (prompt, passes, _) in enumerate(answers)]
    scores = torch.tensor([score for _, _, score in answers])
    expected: dict[str, list[float]] = {}
    for prompt, passes, score in answers:
        for other, other_passes, other_score in answers:
            if prompt == other and passes and not other_passes:
                right = 1.0 if score > other_score else 0.0 if score < other_score else 0.5
                expected.setdefault(prompt, []).append(right)
    found = {row["prompt"]: (row["right"], row["pairs"]) for row in on_policy.order(completions, scores)}
    assert found == {prompt: (sum(right), len(right)) for prompt, right in expected.items()}
    assert len(found) > 3


def test_answers_that_no_check_tells_apart_say_nothing() -> None:
    alike = [completion("a", True, 0), completion("a", True, 1)]
    two_prompts = [completion("b", True), completion("c", False)]
    unchecked = [completion("d", True, 0, None), completion("d", False, 1, None)]
    every = [*alike, *two_prompts, *unchecked]
    assert list(on_policy.order(every, torch.arange(len(every)).float())) == []
    assert on_policy.by_checkpoint([], 5, 11) == []
    assert on_policy.told([]) == ""


def test_a_prompt_that_came_twice_is_one_prompt() -> None:
    rows = [{"step": step, "prompt": f"p{i}", "right": i % 2, "pairs": 1} for i in range(20) for step in range(1, 6)]
    pairs, rate = on_policy.accuracy(rows)
    assert (pairs, rate.n, rate.mean) == (100, 20, 0.5)
    assert rate.high - rate.low > 0.3, "as wide as twenty draws allow, not a hundred"


def test_a_window_ends_at_each_checkpoint() -> None:
    def row(step: int, right: float, pairs: int) -> dict:
        return {"step": step, "prompt": f"p{step}", "right": right, "pairs": pairs}

    first, second, last = on_policy.by_checkpoint([row(1, 3, 3), row(5, 0, 1), row(6, 2, 4), row(11, 1, 1)], 5, 11)
    assert [one["step"] for one in (first, second, last)] == [5, 10, 11]
    assert [one["pairs"] for one in (first, second, last)] == [4, 4, 1]
    assert first["accuracy"]["mean"] == pytest.approx(3 / 4)
    assert second["accuracy"]["mean"] == pytest.approx(0.5)
    assert [one["accuracy"]["n"] for one in (first, second, last)] == [2, 1, 1]
    line = on_policy.told([first, second])
    assert "75% (0% to 100%) of 4 up to iteration 5, 50%" in line
