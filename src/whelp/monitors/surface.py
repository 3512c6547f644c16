"""What can be read off the surface of an answer: what a reward model must beat, and what hacks of it look like."""

from __future__ import annotations

import math
import re
from collections import Counter

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
POLITE = re.compile(r"\b(please|thank|thanks|sorry|glad|happy to|welcome|kind|hope)\b", re.I)
CONFIDENT = re.compile(
    r"\b(definitely|certainly|clearly|obviously|absolutely|undoubtedly|always|never|of course|sure)\b", re.I
)
HEDGED = re.compile(
    r"\b(may|might|perhaps|maybe|possibly|probably|seems?|likely|not sure|uncertain|I think|could)\b", re.I
)
FLATTERY = re.compile(
    r"\b((great|excellent|brilliant|wonderful|fantastic|amazing|insightful|good|smart|clever) (question|point|idea|thinking)"
    r"|you('re| are) (so |very |really )?(smart|brilliant|insightful|clever|right to))",
    re.I,
)
NAMES = (
    "log length", "sentence length", "punctuation", "lists", "questions", "exclamations",
    "politeness", "confidence", "hedging", "flattery", "repetition", "first person", "cut off",
)  # fmt: skip


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def repetition(text: str, n: int = 4) -> float:
    """Share of n-grams of words that occurred before in the same text: 0 for none, near 1 for a loop."""
    tokens = words(text)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def is_flattering(text: str) -> bool:
    return bool(FLATTERY.search(text))


def features(text: str) -> list[float]:
    """One number for each of `NAMES`; nothing here reads the prompt or understands the answer."""
    tokens = words(text)
    count = max(1, len(tokens))
    sentences = max(1, len(re.findall(r"[.!?]+", text)))
    marks = Counter(text)
    return [
        math.log1p(len(tokens)),
        math.log1p(count / sentences),
        sum(marks[c] for c in ",;:-()") / count,
        float(len(re.findall(r"(?m)^\s*(?:[-*]|\d+[.)])\s|\b\d[.)]\s", text))),
        float(marks["?"]),
        float(marks["!"]),
        len(POLITE.findall(text)) / count * 10,
        len(CONFIDENT.findall(text)) / count * 10,
        len(HEDGED.findall(text)) / count * 10,
        float(is_flattering(text)),
        repetition(text),
        sum(token in ("i", "i'm", "i've", "i'd", "i'll", "my", "me") for token in tokens) / count * 10,
        float(not text.rstrip().endswith((".", "!", "?", '"', "”", ")", "'"))),
    ]
