"""Which of two answers is better, asked both ways round."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import scipy.stats
import torch

from whelp.engines.base import ModelSpec
from whelp.judges import asking, trust
from whelp.judges.base import Comparison, Opinion, labels
from whelp.judges.local import Example, LocalJudge
from whelp.text.formats import read_principles
from whelp.types import Message, Prompt, Ranking

PRINCIPLE = read_principles("builtin:constitution")[0]


def comparison(first: str = "yes", second: str = "no", id: str = "c") -> Comparison:
    return Comparison(id, (Message("user", "hello there"),), first, second, PRINCIPLE)


class Scripted:
    """Says what a function of the two answers says, in whatever order it likes."""

    name = "scripted"

    def __init__(self, say, order=list):
        self.say, self.order = say, order

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        for place in self.order(range(len(comparisons))):
            p = self.say(comparisons[place].first, comparisons[place].second)
            yield place, None if p is None else Opinion(p)


@pytest.mark.parametrize("order", [list, lambda places: list(places)[::-1]])
def test_a_label_does_not_depend_on_which_answer_came_first(order) -> None:
    judge = Scripted(lambda a, b: 0.9 if a == "yes" else 0.3, order)
    asked = [comparison("yes", "no"), comparison("no", "yes")]
    found = dict(labels(judge, asked))
    assert found[0].first == pytest.approx(0.8)
    assert found[1].first == pytest.approx(0.2)
    assert found[0].position_bias == found[1].position_bias == pytest.approx(0.1)


def test_a_judge_that_always_says_a_knows_nothing_and_is_seen() -> None:
    [(_, label)] = labels(Scripted(lambda a, b: 1.0), [comparison()])
    assert (label.first, label.position_bias) == (0.5, 0.5)


def test_a_chain_of_thought_is_held_within_its_bounds() -> None:
    for p in (0.0, 0.45, 1.0):
        [(_, label)] = labels(Scripted(lambda a, b, p=p: p if a == "yes" else 1 - p), [comparison()], (0.4, 0.6))
        assert label.first == pytest.approx(min(max(p, 0.4), 0.6))


def test_what_cannot_be_read_is_no_label() -> None:
    judge = Scripted(lambda a, b: None if a == "no" else 0.7)
    assert list(labels(judge, [comparison(), comparison("x", "y")])) == [(0, None), (1, labels_of(judge, "x", "y"))]


def labels_of(judge, first: str, second: str):
    [(_, label)] = labels(judge, [comparison(first, second)])
    return label


# -- a model of the engine --------------------------------------------------------------------------------------------


@pytest.fixture
def judge(engine, tiny_model_folder) -> LocalJudge:
    engine.add("judge", ModelSpec(source=tiny_model_folder("llama", max_position_embeddings=2048), trainable_layers=2))
    return LocalJudge(engine, engine.chat, "judge")


@torch.no_grad()
def next_word_odds(model, chat, question: str, words: tuple[str, str], before: tuple[Message, ...] = ()) -> float:
    """Of the first tokens of two words, by one pass of the whole model."""
    tokens = chat.prompt(Prompt("q", (*before, Message("user", question))))
    logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
    one, other = (chat.tokenizer.encode(word, add_special_tokens=False)[0] for word in words)
    return float(logits[one] - logits[other])


@pytest.mark.parametrize("examples", [(), (Example("is it so?", "B"), Example("and now?", "A"))])
def test_a_choice_is_the_models_own_probability_of_a_against_b(
    examples, judge: LocalJudge, whole_model, tiny_model_folder
) -> None:
    model = whole_model(tiny_model_folder("llama", max_position_embeddings=2048))
    judge = replace(judge, examples=examples)
    asked = [comparison("yes you are", "no"), comparison("fine", "i am fine. the end", "d")]
    before = tuple(turn for e in examples for turn in (Message("user", e.question), Message("assistant", e.word)))
    for place, opinion in judge.opinions(asked):
        odds = next_word_odds(model, judge.chat, asking.choice(asked[place]), ("A", "B"), before)
        assert opinion.first == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_a_verdict_compares_the_odds_of_yes(judge: LocalJudge, whole_model, tiny_model_folder) -> None:
    model = whole_model(tiny_model_folder("llama", max_position_embeddings=2048))
    judge, one = replace(judge, way="verdict"), comparison("yes you are", "no")
    odds = [
        next_word_odds(model, judge.chat, asking.verdict(one.messages, answer, PRINCIPLE.principle), ("yes", "no"))
        for answer in (one.first, one.second)
    ]
    [(_, opinion)] = judge.opinions([one])
    assert logit(opinion.first) == pytest.approx(odds[0] - odds[1], abs=1e-3)
    [(_, label)] = labels(judge, [one])
    assert label.position_bias == pytest.approx(0, abs=1e-4), "each answer is judged alone"


def test_what_is_asked_holds_all_that_is_to_be_judged() -> None:
    one = Comparison("c", (Message("system", "Be kind."), Message("user", "Why?")), " So. ", "Because.", PRINCIPLE)
    for text in (asking.choice(one), asking.thoughtful_choice(one)):
        for part in ("Instructions: Be kind.", "Human: Why?", "(A) So.\n", "(B) Because.", PRINCIPLE.comparison):
            assert part in text
    assert "(A) Because." in asking.choice(one.swapped())


# -- what a judge is worth --------------------------------------------------------------------------------------------


def rankings(count: int) -> list[Ranking]:
    return [
        Ranking(Prompt(f"p{i}", (Message("user", f"question {i}"),)), ("good a", "bad b", "worse c"), (1, 2, 3))
        for i in range(count)
    ]


def judged_by(say, count: int = 120, principles=None) -> trust.Trust:
    return measured(Scripted(say), trust.known_pairs(rankings(count), principles or [PRINCIPLE]))


def measured(judge, known: Sequence[trust.Known]) -> trust.Trust:
    said = labels(judge, [one.comparison for one in known])
    return trust.measure(known, {known[place].comparison.id: label for place, label in said})


def value(text: str) -> int:
    return {"good a": 2, "bad b": 1, "worse c": 0}[text]


def test_a_judge_that_knows_is_trusted() -> None:
    found = judged_by(lambda a, b: 0.8 if value(a) > value(b) else 0.2)
    assert (found.agreement.mean, found.position_bias.mean, found.flips.mean) == (1.0, pytest.approx(0), 0.0)
    assert found.calibration_error == pytest.approx(0.2, abs=1e-6), "it is always right and says 80%"
    assert found.is_trusted
    assert found.agreement.n == 120, "prompts, not pairs"


def test_a_planted_judge_that_always_says_a_is_caught() -> None:
    found = judged_by(lambda a, b: 0.99)
    assert found.agreement.mean == 0.5
    assert found.position_bias.mean == pytest.approx(0.49)
    assert found.flips.mean == 1.0
    assert not found.is_trusted


def test_a_judge_that_tosses_a_coin_is_not_trusted() -> None:
    coin = random.Random(0)
    found = [judged_by(lambda a, b: coin.random()) for _ in range(20)]
    assert sum(one.is_trusted for one in found) <= 2, "one in forty by chance"
    assert found[0].verdict("it").startswith("UNTRUSTED: it agrees with people on ")
    assert found[0].verdict("it").endswith("of 360 pairs that people ranked, which chance alone could do.")
    contrary = judged_by(lambda a, b: 1.0 if value(a) < value(b) else 0.0)
    assert contrary.agreement.mean == 0.0
    assert contrary.verdict("it").endswith(
        "(95% interval 0 to 0%) of 360 pairs that people ranked, less than a coin would."
    )


def test_principles_are_drawn_uniformly_and_judged_apart() -> None:
    principles = list(read_principles("builtin:constitution"))
    known = trust.known_pairs(rankings(800), principles)
    counts = Counter(one.comparison.principle.id for one in known)
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 0.01
    assert len(counts) == len(principles)
    assert scipy.stats.binomtest(sum(one.is_first_better for one in known), len(known)).pvalue > 0.01
    good, bad = principles[0].id, principles[1].id

    class Biased(Scripted):
        def opinions(self, comparisons):
            for place, one in enumerate(comparisons):
                right = value(one.first) > value(one.second)
                yield place, Opinion(0.9 if right == (one.principle.id == good) else 0.1)

    found = measured(Biased(None), [k for k in known if k.comparison.principle.id in (good, bad)])
    assert {name: rate.mean for name, rate in found.by_principle.items()} == {good: 1.0, bad: 0.0}


def test_what_was_not_read_is_counted() -> None:
    found = judged_by(lambda a, b: None if "worse c" in (a, b) else 0.7 if value(a) > value(b) else 0.3)
    assert (found.asked, found.unread, found.agreement.mean) == (360, 240, 1.0)
    nothing = judged_by(lambda a, b: None)
    assert (nothing.agreement, nothing.is_trusted, nothing.as_dict()["trusted"]) == (None, False, False)
