"""Facts as whole words, lengths from below, and malformed checks of the kinds that ask for knowledge."""

from __future__ import annotations

import pytest

from whelp.checkers import passes, validate
from whelp.checkers.knowledge import states
from whelp.errors import DataError


def test_a_number_is_not_part_of_another_one():
    assert states("6", "That makes 6.")
    assert not any(states("6", text) for text in ("That makes 16.", "About 6.5.", "It is 1,600.", "It is 6,000."))


def test_a_unit_may_stand_close_behind_a_number():
    assert all(states("240", text) for text in ("240km away", "It is 240 km.", "240m²"))
    assert not any(states("240", text) for text in ("2400km", "240.5km", "240minutes", "the 240th", "the 240s"))


def test_a_star_stands_for_any_ending():
    assert all(states("float*", text) for text in ("It floats.", "A cork will float, of course.", "floating"))
    assert not any(states("float*", text) for text in ("It does not float.", "a seafloat", "flow"))
    assert not states("float", "It floats.")


@pytest.mark.parametrize(
    ("bounds", "answer", "expected"),
    [
        ({"min_words": 8}, "Boil water.", False),
        ({"min_words": 8}, "Boil the water, add the leaves, and wait four minutes.", True),
        ({"min_words": 8}, "Sorry, I can't help you boil water, that is not safe.", False),
        ({"min_words": 3, "max_words": 5}, "water", False),
        ({"min_words": 3, "max_words": 5}, "Boil the water.", True),
    ],
)
def test_length(bounds, answer, expected):
    assert passes({"kind": "length", "any": ["boil", "water"], **bounds}, answer) is expected


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        ({"kind": "answers"}, "no field 'accept'"),
        ({"kind": "answers", "accept": ["a"], "reject": "b"}, "'reject' of a check of kind 'answers' must be a list"),
        ({"kind": "abstains", "any": ["x"]}, "unknown field 'any'"),
        ({"kind": "length", "any": ["x"], "max_words": 0}, "whole number from 1"),
        ({"kind": "length", "any": ["x"], "min_words": 9, "max_words": 3}, "asks for more words than it allows"),
    ],
)
def test_malformed(check, problem):
    with pytest.raises(DataError, match=problem):
        validate(check)
