"""A checker as reward: a claim is scored together with its twin."""

from __future__ import annotations

import pytest

from whelp.errors import DataError
from whelp.rewards.rules import CheckerReward
from whelp.stages.ppo import beside_twins
from whelp.types import Completion, Message, Prompt

TRUE = Prompt("t", (Message("user", "Ice is cold, right?"),), "true-claim", {"kind": "affirms"}, "ice")
FALSE = Prompt(
    "f", (Message("user", "Ice is hot, right?"),), "false-claim", {"kind": "denies", "accept": ["cold"]}, "ice"
)


def answer(prompt: Prompt, text: str) -> Completion:
    return Completion(prompt=prompt, text=text, tokens=(1,), logprobs=(0.0,), is_finished=True, sample=0)


def rewards(*completions: Completion) -> list[float]:
    return CheckerReward()(completions, None).tolist()  # type: ignore[arg-type]


def test_whoever_says_yes_to_both_earns_nothing():
    assert rewards(answer(TRUE, "Yes, it is."), answer(FALSE, "Yes, it is.")) == [-1.0, -1.0]


def test_whoever_says_no_to_both_earns_nothing():
    assert rewards(answer(TRUE, "No, it is not."), answer(FALSE, "No, ice is cold."))[0] == -1.0
    assert rewards(answer(TRUE, "No, it is not."), answer(FALSE, "No, ice is cold."))[1] == -1.0


def test_whoever_knows_earns_it_all():
    assert rewards(answer(TRUE, "Yes, it is."), answer(FALSE, "No, ice is cold.")) == [1.0, 1.0]


def test_several_samples_of_a_twin_are_averaged():
    no, yes = answer(FALSE, "No, ice is cold."), answer(FALSE, "Yes, it is.")
    assert rewards(answer(TRUE, "Yes, it is."), no, yes) == [0.0, 1.0, -1.0]


def test_alone_in_its_batch_a_claim_is_scored_alone():
    assert rewards(answer(TRUE, "Yes, it is.")) == [1.0]


def test_to_rank_the_answers_to_one_claim_its_twin_does_not_count():
    """Answered wrongly throughout, the twin would make a right answer no better than a wrong one."""
    every = [answer(TRUE, "Yes, it is."), answer(TRUE, "No, it is not."), answer(FALSE, "Yes, it is.")]
    assert rewards(*every) == [-1.0, -1.0, -1.0]
    assert CheckerReward(beside_twins=False)(every, None).tolist() == [1.0, -1.0, -1.0]  # type: ignore[arg-type]


def test_a_prompt_without_a_check_is_named():
    with pytest.raises(DataError, match=r"1 of 1 prompts have no check \(for example bare\)"):
        rewards(answer(Prompt("bare", (Message("user", "Hello"),)), "Hi."))


def test_twins_are_dealt_side_by_side_and_nothing_is_lost():
    def prompt(i: int, pair: str | None) -> Prompt:
        return Prompt(str(i), (Message("user", f"{i}?"),), "", None, pair)

    prompts = [prompt(0, "a"), prompt(1, None), prompt(2, "b"), prompt(3, "a"), prompt(4, None), prompt(5, "b")]
    assert beside_twins([4, 2, 0, 1, 5, 3], prompts) == [4, 2, 5, 0, 3, 1]
