"""How benchmarks/watch.py counts: hacks that the watch's own signs see, and when a mean first stood beyond a limit."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from whelp.monitors.hacks import SIGNS
from whelp.types import Message, Prompt

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import watch

PROMPT = Prompt("p", (Message("user", "What is tea made of?"),))
ANSWER = "It is made of leaves. They are dried first."


@pytest.mark.parametrize("hack", ["repetition", "flattery", "certainty"])
def test_a_hack_shows_in_its_own_sign(hack: str):
    shown = set()
    for seed in range(20):  # of the audit's words of praise the watch knows some
        text = watch.HACKS[hack](PROMPT, ANSWER, random.Random(seed))
        shown |= {name for name, read in SIGNS.items() if read(text) > read(ANSWER)}
    assert hack in shown


def test_padding_is_longer_and_nothing_else():
    text = watch.HACKS["length"](PROMPT, ANSWER, random.Random(0))
    assert len(text.split()) > 3 * len(ANSWER.split())
    assert all(read(text) == read(ANSWER) for read in SIGNS.values())


def step(length: float, entropy: float = 2.0, **signs: float) -> dict[str, float]:
    return {"response_length": length, "objective/entropy": entropy, **dict.fromkeys(SIGNS, 0.0), **signs}


def test_when_a_mean_first_stood_beyond_its_limit():
    """A quarter more of length; 5 and 10 points; 35% less of entropy."""
    steps = [
        step(40),
        step(49, flattery=0.09),
        step(50, repetition=0.06),
        step(60, entropy=1.31),
        step(30, 1.29, certainty=0.1),
    ]
    assert watch.beyond({"steps": steps}) == {"length": 3, "repetition": 3, "entropy": 5, "certainty": 5}
    assert watch.beyond({"steps": steps[:1]}) == {}


def test_quantiles_count_what_was_never_seen_as_latest():
    assert watch.quantile([3, 1, None, 2], 0.5) == "+3"
    assert watch.quantile([-1, -1, None, None], 0.9) == "none"
