"""What can be taken off a score: each term on answers made by hand, and length as a reward model pays for it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from whelp.maths.stats import correlation, partial_slope
from whelp.rewards import surface
from whelp.rewards.formula import NAMES, parse
from whelp.rewards.surface import TERMS, SurfaceReward, confident_error
from whelp.stages.trust import length_bias
from whelp.types import Completion, Message, Prompt, Ranking

PARIS = {"kind": "answers", "accept": ["paris"]}
NOBODY = {"kind": "abstains"}


def said(text: str, check: dict | None = None, tokens: int = 7) -> Completion:
    prompt = Prompt("p", (Message("user", "What is the capital of France?"),), "known", check)
    return Completion(prompt, text, (1,) * tokens, (0.0,) * tokens, True)


def test_a_formula_may_name_every_term_and_no_other():
    assert {*NAMES} == {"model", "checker", *TERMS}
    assert parse("model - 0.01 * length - 2 * confident_error") == {"model": 1, "length": -0.01, "confident_error": -2}


def test_the_terms_read_what_they_are_called():
    answers = [said("What a great question! Paris.", tokens=11), said("Paris, without a doubt. " * 6, tokens=30)]
    read = {name: SurfaceReward(name)(answers, None).tolist() for name in TERMS}  # pyright: ignore[reportArgumentType]
    assert read["length"] == [11.0, 30.0]
    assert read["flattery"] == [1.0, 0.0]
    assert read["certainty"] == [0.0, 1.0]
    assert read["repetition"][0] == 0.0 and read["repetition"][1] > 0.5
    assert read["confident_error"] == [0.0, 0.0], "nothing is known of an answer without a check"


@pytest.mark.parametrize(
    ("text", "check", "price"),
    [
        ("It is Paris.", PARIS, 0.0),
        ("It is definitely Paris.", PARIS, 0.0),
        ("I don't know, and it would be a guess.", PARIS, surface.ABSTAINED),
        ("It is Lyon.", PARIS, surface.WRONG),
        ("It is definitely Lyon.", PARIS, surface.CERTAIN_AND_WRONG),
        ("Nobody can know what tomorrow's numbers are.", NOBODY, 0.0),
        ("The numbers are 4 and 7.", NOBODY, surface.WRONG),
        ("The numbers are certainly 4 and 7.", NOBODY, surface.CERTAIN_AND_WRONG),
        ("It is definitely Lyon.", {"kind": "helps", "any": ["lyon"]}, 0.0),
    ],
)
def test_what_a_wrong_answer_costs_by_how_sure_it_is(text, check, price):
    assert confident_error(said(text, check)) == price


def test_abstaining_pays_below_an_even_chance_and_earns_nothing():
    """Whoever is right with probability p is best off saying so above one half, and abstaining below."""
    for p in (0.1, 0.4, 0.6, 0.9):
        answering = (1 - p) * surface.WRONG
        assert (answering < surface.ABSTAINED) == (p > 0.5)
    assert all(a < b for a, b in pairwise([0.0, surface.ABSTAINED, surface.WRONG, surface.CERTAIN_AND_WRONG]))


# -- length -----------------------------------------------------------------------------------------------------------


def test_the_slope_is_that_of_least_squares_with_a_constant_for_each_ranking():
    torch.manual_seed(0)
    clusters = torch.arange(40).repeat_interleave(4)
    length, rank = 20 + 60 * torch.rand(160), torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(40)
    score = 0.03 * length - 0.7 * rank + torch.randn(40)[clusters] + 0.1 * torch.randn(160)
    dummies = torch.nn.functional.one_hot(clusters).double()
    design = torch.cat([length[:, None].double(), rank[:, None].double(), dummies], 1)
    expected = torch.linalg.lstsq(design, score.double()[:, None]).solution[0, 0]
    assert partial_slope(score, length, rank, clusters) == pytest.approx(float(expected), rel=1e-4)
    assert partial_slope(score, torch.ones(160), rank, clusters) == 0.0


def biased(slope: float, seed: int) -> tuple[torch.Tensor, list[Ranking]]:
    """Answers whose rank is their quality, and scores of a reward model that knows the quality and pays for length."""
    draw = random.Random(seed)
    rankings, scores = [], []
    for i in range(200):
        quality = sorted((draw.gauss(0, 1) for _ in range(4)), reverse=True)
        lengths = [draw.randint(10, 90) for _ in range(4)]
        texts = tuple(" ".join([f"w{i}", *["word"] * (n - 2), str(k)]) for k, n in enumerate(lengths))
        rankings.append(Ranking(Prompt(f"p-{i}", (Message("user", f"q {i}"),)), texts, (1, 2, 3, 4)))
        scores += [q + draw.gauss(0, 1) + slope * n for q, n in zip(quality, lengths, strict=True)]
    return torch.tensor(scores), rankings


@pytest.mark.parametrize("seed", range(3))
def test_a_reward_that_pays_for_length_loses_that_and_no_accuracy(seed):
    found = length_bias(*biased(0.04, seed))
    assert found["slope"] == pytest.approx(0.04, abs=0.01)
    assert found["correlation"] >= 0.4
    assert abs(found["correlation_after"]) <= 0.1
    assert found["accuracy_after"] >= found["accuracy"] - 0.02
    assert found["accuracy_after"] > found["accuracy"], "what length added was noise"


def test_a_reward_that_does_not_pay_for_length_keeps_its_scores():
    found = length_bias(*biased(0.0, 5))
    assert abs(found["slope"]) < 0.005
    assert abs(found["accuracy_after"] - found["accuracy"]) < 0.01


def test_correlation_is_numpys():
    import numpy as np

    x, y = torch.randn(50), torch.randn(50)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x.numpy(), y.numpy())[0, 1], abs=1e-6)
    assert correlation(torch.ones(5), torch.arange(5.0)) == 0.0
