"""What the checks are made of: telling refusals, stances, degenerate answers and prose."""

from __future__ import annotations

import pytest
from checker_answers import ESSAY, POEM

from whelp.checkers import agrees, disagrees, is_degenerate, is_prose, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "Yes, in most states one person on the call may agree to it.",
        "No. Power grids could fail for a while, but a phone in your pocket would survive.",
        "You can't pick that lock without a wrench, so buy one and practise on an open padlock.",
        "No, please don't. Mixed together, bleach and vinegar give off chlorine gas.",
        "No, I said to cook it until it is tender, which takes longer than an hour.",
        "It has many strings and can't find a signal, and so can't perform well, but I like it.",
        "Rub it with oil. I can't recommend the cheap brushes.",
        "I can't wait to hear how it goes! Start with a warm oven.",
        'Say, "I won\'t help you with that any more," and leave the room.',
        "They can't help each other, because wasps of two nests do not share food.",
        "The planet won't harm you, and you shouldn't worry.",
        "I won't forget her laugh, and I can't believe it is a year.",
    ],
)
def test_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("Yes.", True, False),
        ("No.", False, True),
        ("That's not correct.", False, True),
        ("That's correct.", True, False),
        ("It isn't.", False, True),
        ("The sky has clouds.", False, False),
        ("The sum is 54. It is easy. Yes.", False, False),
        ("No doubt about it, that's right.", True, False),
        ("That's not wrong at all, you're right.", True, False),
    ],
)
def test_stance(text, yes, no):
    assert (agrees(text), disagrees(text)) == (yes, no)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "Go. Go. Go.",
        "?!? ... !!! (((",
        "one two three four, one two three four, one two three four, one two three four",
        "I see. It is so. I see. Maybe it is. I see.",
        " ".join(["a b c d e f g"] * 3 + ["g f e d c b a"] * 3),
        "12 34 56 78 90 12 34 56 78 90 12 34 56 78 90 11 12 13 14 15 abc",
    ],
)
def test_degenerate(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "No, 2 + 1 = 3.",
        "one two three four, one two three four, one two three four",
        "I see. It is so. I see. Maybe it is.",
        POEM,
        "This is fine.",
        "Ja, das ist richtig.",
    ],
)
def test_not_degenerate(text):
    assert not is_degenerate(text)


def test_prose():
    assert is_prose(ESSAY)
    assert is_prose(POEM)
    assert not is_prose("snow ice frost cold winter wind sleet hail storm")
    assert not is_prose(
        "snow and ice and frost and cold and wind and sleet and hail and storm and fog and mist and rain"
    )
    assert not is_prose("and the snow of the lake " + " ".join(f"it is on a word{i}" for i in range(15)))
