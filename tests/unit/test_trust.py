"""What is said of a reward model whose defects are planted."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from whelp.stages import trust
from whelp.stages.trust import calibration, compare, length_given_quality
from whelp.types import Estimate, Message, Prompt, Ranking


def rankings(count: int, source: str = "human") -> list[Ranking]:
    """Four answers to each prompt, of 1 to 40 words; what they are worth has nothing to do with their length."""
    draw = random.Random(3)
    made = []
    for i in range(count):
        texts = tuple(" ".join(["word"] * draw.randint(1, 40)) for _ in range(4))
        ranks = draw.choice([(1, 2, 3, 4), (2, 1, 1, 3), (1, 1, 2, 2), (3, 2, 2, 1)])
        made.append(Ranking(Prompt(f"p{i}", (Message("user", f"question {i}"),), "explain"), texts, ranks, source))
    return made


def scores_of(data: list[Ranking], pays_for_length: float) -> torch.Tensor:
    draw = random.Random(4)
    return torch.tensor(
        [
            -rank + pays_for_length * len(text.split()) + draw.gauss(0, 1)
            for ranking in data
            for text, rank in zip(ranking.completions, ranking.ranks, strict=True)
        ]
    )


@pytest.mark.parametrize(("pays_for_length", "sign"), [(0.1, 1), (-0.1, -1)])
def test_a_model_that_pays_for_length_is_seen(pays_for_length, sign):
    data = rankings(120)
    found = length_given_quality(scores_of(data, pays_for_length), data)
    assert sign * found.mean > 0.5
    assert sign * min(found.low, found.high, key=lambda end: sign * end) > 0.4


def test_a_model_that_pays_for_quality_alone_is_not_accused():
    data = rankings(120)
    found = length_given_quality(scores_of(data, 0.0), data)
    assert found.low < 0 < found.high
    assert found.n == 120


def test_a_model_that_is_too_sure_is_seen_and_mended():
    data = rankings(300)
    pairs = compare(5 * scores_of(data, 0.0), data, data)
    found = calibration(pairs.margin, pairs.cluster)
    assert found["error"] > 0.1 > 0.05 > found["error_after"]
    assert found["temperature"] > 2
    assert sum(b["n"] for b in found["bins"]) == sum(b["n"] for b in found["bins_after"]) == len(pairs.margin)


def test_pairs_know_their_source():
    data = [*rankings(3), *rankings(2, source="ai")]
    pairs = compare(scores_of(data, 0.0), data, data)
    assert set(pairs.source) == {"human", "ai"}
    assert len(pairs.source) == len(pairs.margin) == len(pairs.category)


MANNERS = {
    "polite": ("The red door is open.", "Thanks, I am glad and hope the red door is open, please."),
    "sure": ("The red door is open today.", "Obviously the red door is always open, definitely."),
    "hedged": ("The red door is open today.", "Perhaps the red door may be open, I think."),
    "flattering": ("The red door is open today.", "Great question, the red door is open."),
    "repeating": ("The red door is open and the cat sat by it.", "The red door is open the red door is open."),
    "asking": ("The red door is open.", "The red door is open, is it?"),
    "cut off": ("The red door is open.", "The red door is"),
}


def told_apart_by(manner: str, count: int = 40) -> list[Ranking]:
    """The second kind of answer is the better one, whatever else stands in it."""
    plain, mannered = MANNERS[manner]
    return [
        Ranking(
            Prompt(f"{manner}-{i}", (Message("user", "?"),)),
            (f"{plain} {'So ' * (i % 5)}it is.", f"{'So ' * (i % 4)}it is. {mannered}"),
            (2, 1),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("manner", MANNERS)
def test_the_surface_baseline_finds_each_manner(manner):
    data = told_apart_by(manner)
    texts = [text for ranking in data for text in ranking.completions]
    found = trust.surface_scores(data[:20], texts)
    worse, better = found[40::2], found[41::2]
    assert (better > worse).float().mean() > 0.9


def test_length_is_taken_with_the_sign_that_fits_the_training_pairs():
    short = [Ranking(Prompt(str(i), ()), ("a b c d", "a"), (2, 1)) for i in range(5)]
    assert trust.length_scores(short, ["one", "one two", "one two three"]).tolist() == [-1, -2, -3]
    long = [Ranking(Prompt(str(i), ()), ("a b c d", "a"), (1, 2)) for i in range(5)]
    assert trust.length_scores(long, ["one", "one two"]).tolist() == [1, 2]


def test_accuracy_by_name_is_that_of_its_pairs_and_counts_prompts():
    names = ["a", "a", "a", "b", "b"]
    found = trust.accuracy_by(names, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5]), torch.tensor([0, 0, 1, 2, 3]))
    assert found["a"]["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert found["b"]["accuracy"]["mean"] == pytest.approx(0.25)
    assert (found["a"]["accuracy"]["n"], found["b"]["accuracy"]["n"]) == (2, 2)


@pytest.mark.parametrize(
    ("low", "high", "place"),
    [(0.4, 0.6, "below"), (0.65, 0.7, "within"), (0.8, 0.9, "above"), (0.6, 0.7, "overlaps"), (0.7, 0.8, "overlaps")],
)
def test_where_a_model_stands_among_people(low, high, place):
    assert trust.beside_people(Estimate((low + high) / 2, low, high, 10)) == place


def test_the_interval_of_length_draws_prompts_and_not_rankings():
    """One prompt that was ranked forty times is one prompt."""
    data = [replace(r, prompt=Prompt("the one", (Message("user", "?"),))) for r in rankings(40)]
    assert length_given_quality(scores_of(data, 1.0), data).n == 1
    assert length_given_quality(scores_of(data, 1.0), rankings(40)).n == 40
