"""What scores an answer, as a recipe writes it: one reward, or a weighted sum of several."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"(?:(?P<weight>[+-]?{NUMBER})\s*\*\s*)?(?P<name>\S+)")
NAMES = ("model", "checker", "length", "repetition", "flattery", "certainty", "confident_error")
"""What needs no code of the user's: a reward model, the prompts' checks, and what can be taken off (`whelp.rewards.surface`)."""
FUNCTION = re.compile(r"\S+\.py:[A-Za-z_]\w*")


def parse(formula: str) -> Mapping[str, float]:
    """`model + 0.5 * checker - 0.1 * rewards.py:length` as weights by name; signs stand between spaces, or first.

    Names are `NAMES` and FILE.py:FUNCTION. Raises `ValueError` that says what is wrong.
    """
    signs_and_terms = re.split(r"(?:^|\s)([+-])\s+", f" {formula.strip()}")
    weights: dict[str, float] = {}
    pairs = [("+", signs_and_terms[0]), *zip(signs_and_terms[1::2], signs_and_terms[2::2], strict=True)]
    for place, (sign, text) in enumerate(pairs):
        if place == 0 and not text.strip() and len(pairs) > 1:
            continue
        term = TERM.fullmatch(text.strip())
        if term is None:
            raise ValueError(f"{text.strip()!r} is no reward")
        name, weight = term["name"], float(term["weight"] or 1)
        if name not in NAMES and not FUNCTION.fullmatch(name):
            raise ValueError(f"{name!r} is no reward")
        if name in weights:
            raise ValueError(f"{name} stands twice")
        if weight == 0 or not math.isfinite(weight):
            raise ValueError(f"{name} has the weight {term['weight']}")
        weights[name] = weight if sign == "+" else -weight
    return weights


def functions(weights: Mapping[str, float]) -> list[str]:
    """The Python functions among the names, FILE.py:FUNCTION."""
    return [name for name in weights if FUNCTION.fullmatch(name)]
