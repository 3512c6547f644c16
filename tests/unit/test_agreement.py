"""What votes say about those who gave them, against another library and votes whose habit is known."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from itertools import combinations

import evalica
import pandas as pd
import pytest

from whelp.feedback.agreement import agreement, alpha, habits, matrix, pairs_of
from whelp.feedback.judgements import Vote


def vote(item: int, user: str, ranks: Sequence[int], order: Sequence[int] | None = None, seconds: float = 10.0) -> Vote:
    return Vote(item, user, tuple(ranks), tuple(order or range(len(ranks))), None, False, "", seconds, 0.0)


def votes_of(items: int, noise: float, seed: int, completions: int = 2, users: str = "abc") -> list[Vote]:
    """Everybody ranks by one true order, and by whim in a share of the items."""
    draw = random.Random(seed)
    made = []
    for item in range(items):
        truth = draw.choices((1, 2, 3), k=completions)
        for user in users:
            if draw.random() < 0.8:  # not everybody has judged everything
                ranks = draw.choices((1, 2, 3), k=completions) if draw.random() < noise else truth
                made.append(vote(item, user, ranks, draw.sample(range(completions), completions)))
    return made


@pytest.mark.parametrize("noise", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("completions", [2, 4])
def test_alpha_is_that_of_another_library(noise: float, completions: int) -> None:
    votes = votes_of(60, noise, 1, completions)
    pairs = pairs_of(votes)
    rows: dict[str, dict[str, float]] = {user: {} for user in "abc"}
    for pair in pairs:
        rows[pair.user][f"{pair.item} {pair.first} {pair.second}"] = float(pair.outcome)
    table = pd.DataFrame.from_dict(rows, orient="index")
    found = alpha(pairs)
    assert found.mean == pytest.approx(evalica.alpha(table, distance="interval").alpha, abs=1e-9)
    assert found.low < found.mean < found.high


def test_alpha_where_all_agree_where_chance_does_and_where_nothing_is_known() -> None:
    agreed = [vote(i, user, (1 + i % 2, 2 - i % 2)) for i in range(20) for user in "ab"]
    assert alpha(pairs_of(agreed)).mean == 1.0
    chance = alpha(pairs_of(votes_of(2000, 1.0, 3)))
    assert chance.low < 0.0 < chance.high
    assert alpha([]) is None
    assert alpha(pairs_of([vote(i, "a", (1, 2)) for i in range(9)])) is None, "one person agrees with nobody"
    assert alpha(pairs_of([vote(i, user, (1, 2)) for i in range(9) for user in "ab"])) is None, "nothing varies"


def test_the_interval_draws_items_and_not_pairs() -> None:
    """Four times the pairs of the same items tell no more."""
    few = votes_of(80, 0.5, 5)
    many = [
        vote(v.item, v.user, [r for r in v.ranks for _ in range(2)], None) for v in few
    ]  # each completion twice: four pairs for one
    wide, narrow = agreement(pairs_of(few)), agreement(pairs_of(many))
    assert narrow.mean == pytest.approx(wide.mean)
    assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.05)
    assert narrow.n == wide.n < 80


def test_agreement_counts_what_both_prefer() -> None:
    votes = [
        vote(1, "a", (1, 2, 3)), vote(1, "b", (1, 3, 2)),  # two of three pairs alike
        vote(2, "a", (1, 2)), vote(2, "b", (1, 1)),  # a tie is no preference
        vote(3, "a", (2, 1)), vote(3, "c", (1, 2)),
        vote(4, "c", (1, 2)),
    ]  # fmt: skip
    pairs = pairs_of(votes)
    assert agreement(pairs).mean == pytest.approx(2 / 4)
    found = matrix(pairs)
    assert list(found) == list(combinations("abc", 2))
    assert found["a", "b"].mean == pytest.approx(2 / 3)
    assert found["a", "c"].mean == 0.0
    assert found["b", "c"] is None


def test_who_takes_what_stands_first_is_seen() -> None:
    draw, votes = random.Random(0), []
    for item in range(300):
        truth = draw.sample((1, 2), 2)
        for user in ("lazy", "keen"):
            order = draw.sample((0, 1), 2)
            takes_first = user == "lazy" and draw.random() < 0.6
            votes.append(
                vote(item, user, (1, 2) if takes_first and order[0] == 0 else (2, 1) if takes_first else truth, order)
            )
    found = habits(votes, dict.fromkeys(range(300), (10, 10)), {})
    assert found["lazy"].position.low > 0.65
    assert found["keen"].position.low < 0.5 < found["keen"].position.high
    assert found["keen"].length is None, "no completion is longer than the other"


def test_who_takes_the_longer_one_is_seen_beside_the_others() -> None:
    draw, votes, words = random.Random(1), [], {}
    for item in range(300):
        words[item] = draw.sample(range(5, 50), 2)
        longer_first = (1, 2) if words[item][0] > words[item][1] else (2, 1)
        for user in ("wordy", "keen"):
            ranks = longer_first if user == "wordy" and draw.random() < 0.5 else draw.sample((1, 2), 2)
            votes.append(vote(item, user, ranks, draw.sample((0, 1), 2)))
    found = habits(votes, words, {})
    assert found["wordy"].length.low > 0.6
    assert found["wordy"].length_of_others.low < 0.5 < found["wordy"].length_of_others.high
    assert found["keen"].length_of_others.mean == found["wordy"].length.mean


def test_known_answers_pace_and_haste() -> None:
    votes = [
        vote(1, "a", (1, 2, 3), seconds=2.0),
        vote(2, "a", (1, 1), seconds=20.0),
        vote(3, "a", (2, 1), seconds=5000.0),
        vote(3, "b", (1, 2), seconds=0.0),
    ]
    found = habits(votes, {1: (1, 1, 1), 2: (1, 1), 3: (1, 1)}, {1: (1, 2, 2), 2: (1, 2)}, min_seconds=3.0)
    assert found["a"].gold.mean == pytest.approx(2 / 3), "what is tied in gold is not asked, and a tie is no answer"
    assert found["a"].gold.n == 2
    assert (found["a"].votes, found["a"].seconds, found["a"].hasty) == (3, 20.0, 1)
    assert found["a"].per_hour == pytest.approx(3600 * 3 / (2 + 20 + 600)), "who was away for an hour was not at work"
    assert found["b"].gold is None
    assert (found["b"].hasty, found["b"].per_hour) == (1, None)


def test_a_share_of_draws_in_which_nothing_is_known_does_not_warn() -> None:
    votes = [vote(1, "a", (1, 2)), vote(1, "b", (1, 2)), vote(2, "a", (1, 1)), vote(2, "b", (1, 1))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(pairs_of(votes))
        assert alpha(pairs_of(votes)).mean == 1.0
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
