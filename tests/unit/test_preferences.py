"""Which model's answers are preferred: outcomes of pairs, an order of many models, and people's word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from whelp.judges.base import Comparison, Label, Opinion, labels
from whelp.judges.people import PeopleJudge
from whelp.judges.trust import Known
from whelp.progress import SilentProgress
from whelp.stages.context import Stage
from whelp.stages.evaluate.answers import Answer
from whelp.stages.evaluate.preferences import (
    PRINCIPLE,
    Asked,
    Game,
    by_check,
    by_score,
    games,
    outcome,
    preferred,
    ranking,
    to_rank,
)
from whelp.types import Message, Prompt, Ranking


def answer(model: str, id: str, text: str, passes: bool | None = None, judge: float | None = None) -> Answer:
    return Answer(
        Prompt(id, (Message("user", f"question {id}"),), "all"),
        model,
        "greedy",
        0,
        text,
        passes,
        len(text),
        True,
        judge,
    )


class Longest:
    """Prefers the longer answer; where `always` is set, whatever stands first."""

    name = "longest"

    def __init__(self, always: bool = False, silent: str = "\0"):
        self.always, self.silent = always, silent
        self.asked: list[Comparison] = []

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        for place, one in enumerate(comparisons):
            self.asked.append(one)
            first = 0.9 if self.always or len(one.first) > len(one.second) else 0.1
            yield place, None if self.silent in one.first + one.second else Opinion(first)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, SilentProgress(), 0)


def known(count: int, is_longer_better: bool = True) -> list[Known]:
    found = []
    for i in range(count):
        texts = ("long answer", "short") if i % 2 else ("short", "long answer")
        one = Comparison(f"known-{i}", (Message("user", f"q{i}"),), *texts, PRINCIPLE)
        found.append(Known(one, (len(texts[0]) > len(texts[1])) == is_longer_better, i))
    return found


@pytest.mark.parametrize(
    ("given", "swapped", "expected"),
    [(0.9, 0.2, 1.0), (0.1, 0.7, 0.0), (0.9, 0.9, 0.5), (0.1, 0.1, 0.5), (0.5, 0.1, 0.5), (0.9, 0.5, 0.5)],
)
def test_a_preference_that_turns_with_the_order_is_a_tie(given: float, swapped: float, expected: float) -> None:
    assert outcome(Label((given + 1 - swapped) / 2, 0.0, (Opinion(given), Opinion(swapped)))) == expected


def test_a_judge_that_is_right_is_counted(stage: Stage) -> None:
    answers = [answer("sft", str(i), "short") for i in range(30)]
    answers += [answer("rlhf", str(i), "a longer answer" if i < 20 else "short" if i < 24 else "s") for i in range(30)]
    judge = Longest()
    found, games = preferred(Asked(judge, known(40)), answers, ["sft", "rlhf"], stage, 1)
    assert (found["counted"], found["people"], found["trust"]["agreement"]["mean"]) == (True, False, 1.0)
    versus = found["versus"]["rlhf over sft"]
    assert (versus["won"], versus["tied"], versus["lost"], versus["unread"]) == (20, 4, 6, 0)
    assert versus["win_rate"]["mean"] == pytest.approx(22 / 30)
    assert 0.5 < versus["win_rate"]["low"] < versus["win_rate"]["high"] < 1
    assert versus["flips"]["mean"] == 0.0
    assert sum(game.won for game in games) == 22.0
    assert len(judge.asked) == 2 * (40 + 26), "nobody is asked of answers that are alike"
    again = Longest()
    assert preferred(Asked(again, known(40)), answers, ["sft", "rlhf"], stage, 1)[0] == found
    assert not again.asked, "what it said is kept"


def test_a_judge_that_always_says_a_is_not_counted_and_decides_nothing(stage: Stage) -> None:
    answers = [answer(model, str(i), model * (i + 1)) for model in ("sft", "rlhf") for i in range(20)]
    found, games = preferred(Asked(Longest(always=True), known(60)), answers, ["sft", "rlhf"], stage, 1)
    assert found["counted"] is False
    assert found["verdict"].startswith("UNTRUSTED")
    assert found["versus"]["rlhf over sft"]["tied"] == 20
    flips = found["versus"]["rlhf over sft"]["flips"]
    assert (flips["mean"], flips["high"]) == (1.0, 1.0) and flips["low"] < 0.9, "twenty are not all there are"
    assert {game.won for game in games} == {0.5}


def test_what_cannot_be_read_is_counted_and_left_out(stage: Stage) -> None:
    answers = [answer("sft", str(i), "short") for i in range(4)] + [
        answer("rlhf", str(i), f"?{i} long") for i in range(4)
    ]
    found, games = preferred(Asked(Longest(silent="?1"), None), answers, ["sft", "rlhf"], stage, 1)
    assert (found["versus"]["rlhf over sft"]["unread"], len(games)) == (1, 3)
    found, games = preferred(Asked(Longest(silent="?"), None), answers, ["sft", "rlhf"], stage, 2)
    assert (found["versus"]["rlhf over sft"]["unread"], found["versus"]["rlhf over sft"]["win_rate"], games) == (
        4,
        None,
        [],
    )


def test_people_know_their_pairs_in_either_order() -> None:
    prompt = Prompt("p", (Message("user", "question 1"),))
    judge = PeopleJudge(
        [
            Ranking(prompt, ("good", "bad", " middling "), (1, 3, 2)),
            Ranking(prompt, ("bad", "good"), (1, 2)),
            Ranking(prompt, ("good", "alike"), (1, 1)),
        ],
        "votes.jsonl",
    )
    pairs = [("good", "middling"), ("middling", "good"), ("good", "bad"), ("good", "alike"), ("good", "unknown")]
    asked = [Comparison(str(i), prompt.messages, *pair, PRINCIPLE) for i, pair in enumerate(pairs)]
    asked.append(Comparison("other", (Message("user", "question 2"),), "good", "bad", PRINCIPLE))
    found = dict(labels(judge, asked))
    assert [label and outcome(label) for label in (found[i] for i in range(6))] == [1.0, 0.0, 0.5, 0.5, None, None]


def test_models_in_one_order() -> None:
    """By hand: b beats a in 3 of 4 (odds 3, with a tie more 7/3), c beats b as often: strengths in steps of log(7/3)."""
    games = [Game(str(i), *pair, float(i < 3)) for pair in (("b", "a"), ("c", "b")) for i in range(4)]
    found = ranking(games, ["a", "b", "c"])
    assert found is not None
    points = [found[name]["mean"] for name in "abc"]
    assert points[1] - points[0] == pytest.approx(147.19, abs=0.01) == pytest.approx(points[2] - points[1], abs=0.01)
    assert sum(points) / 3 == pytest.approx(1000)
    assert ranking(games, ["a", "b"]) is None
    assert ranking(games, ["a", "b", "c", "d"]) is None, "d was not compared"
    always = [Game(str(i), first, second, 1.0) for first, second in (("b", "a"), ("c", "b")) for i in range(4)]
    closed = ranking(always, ["a", "b", "c"])
    assert closed is not None and closed["c"]["high"] is None and closed["a"]["low"] is None
    json.dumps(closed, allow_nan=False)


def test_every_two_models_play_by_checks_and_by_scores() -> None:
    answers = [
        *(answer("a", str(i), "a", passes=i < 2, judge=0.0) for i in range(4)),
        *(answer("b", str(i), "b", passes=i < 3, judge=float(i)) for i in range(4)),
        *(answer("c", str(i), "c", passes=True, judge=-1.0) for i in range(4)),
        *(answer(model, "unchecked", "x", judge=1.0) for model in "abc"),
    ]
    by_pair = {}
    for game in games(answers, ["a", "b", "c"], by_check):
        by_pair.setdefault((game.first, game.second), []).append(game.won)
    assert by_pair == {
        ("b", "a"): [0.5, 0.5, 1.0, 0.5],
        ("c", "a"): [0.5, 0.5, 1.0, 1.0],
        ("c", "b"): [0.5, 0.5, 0.5, 1.0],
    }
    scores = {(g.first, g.second, g.prompt): g.won for g in games(answers, ["a", "b", "c"], by_score)}
    assert [scores["b", "a", str(i)] for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert scores["c", "b", "0"] == 0.0
    assert scores["c", "b", "unchecked"] == 0.5


def test_people_are_not_told_whose_answers_they_rank() -> None:
    answers = [answer(model, str(i), f"{model} says {i}") for model in ("sft", "rlhf") for i in range(40)]
    answers += [answer(model, "alike", "the same") for model in ("sft", "rlhf")]
    rows = to_rank(answers, ["sft", "rlhf"], 0)
    assert [row["id"] for row in rows] == [str(i) for i in range(40)], (
        "there is nothing to rank where both say the same"
    )
    assert all(set(row) == {"id", "category", "prompt", "completions", "ranks"} for row in rows)
    firsts = sum(row["completions"][0].startswith("rlhf") for row in rows)
    assert 8 < firsts < 32, "the order is drawn"
    assert to_rank(answers, ["sft", "rlhf"], 0) == rows != to_rank(answers, ["sft", "rlhf"], 1)
