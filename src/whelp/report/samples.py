"""Evaluated answers by prompt: what changed between two models, and how much of all that fits on a page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

from markupsafe import escape

from whelp.report.evaluation import Completed

_LIMITS = (4000, 2000, 1000, 500, 250, 120, 60)
_ANSWER_MARKUP, _GROUP_MARKUP = 170, 300  # bytes of HTML around each, measured generously


@final
@dataclass(frozen=True, slots=True)
class Group:
    """All answers to one prompt."""

    id: str
    anchor: str
    category: str
    prompt: str
    answers: tuple[Completed, ...]

    def passed(self, model: str, mode: str) -> tuple[int, int]:
        """(how many passed, how many were checked)"""
        checked = [a.passes for a in self.answers if a.model == model and a.mode == mode and a.passes is not None]
        return sum(checked), len(checked)

    def greedy(self, model: str) -> Completed | None:
        return next((a for a in self.answers if a.model == model and a.mode == "greedy"), None)


@final
@dataclass(frozen=True, slots=True)
class Change:
    """How one prompt fared under two models. `gain` is the change of the greedy check plus that of the sampled rate."""

    group: Group
    gain: float
    judged: float


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """What fits: `limit` is the number of characters to which longer texts were cut (None: no text was), `left_out`
    the number of prompts for which there was no room."""

    groups: tuple[Group, ...]
    limit: int | None
    left_out: int


def anchor(sample_id: str) -> str:
    """An HTML id without white space or quotes, the same for the same id and different for different ones."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", sample_id):
        return f"sample-{sample_id}"
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"sample-{re.sub(r'[^A-Za-z0-9._-]+', '-', sample_id)[:40]}-{digest}"


def group(completions: Iterable[Completed]) -> list[Group]:
    """By id, in the order in which ids first appear; answers keep their order."""
    found: dict[str, list[Completed]] = {}
    for completion in completions:
        found.setdefault(completion.id, []).append(completion)
    return [Group(i, anchor(i), found[i][0].category, found[i][0].prompt, tuple(found[i])) for i in found]


def changes(groups: Sequence[Group], before: str, after: str) -> list[Change]:
    """Prompts on which the two models differ in checks passed: the biggest gains first.

    Equal gains are ordered by the judge's change, then by id.
    """
    found = []
    for each in groups:
        gains = [_rate(each, after, mode) - _rate(each, before, mode) for mode in _modes(each, before, after)]
        if gain := sum(gains):
            found.append(Change(each, gain, _judged(each, after) - _judged(each, before)))
    return sorted(found, key=lambda change: (-change.gain, -change.judged, change.group.id))


def standing(each: Group, gain: float, after: str) -> str:
    """What became of a prompt, in words: `better` or `worse` than before, and `fails` where the model's greedy answer does."""
    answer = each.greedy(after)
    fails = answer is not None and answer.passes is False
    return " ".join((["better"] if gain > 0 else ["worse"] if gain < 0 else []) + (["fails"] if fails else []))


def fit(groups: Sequence[Group], budget: int) -> Shown:
    """Cut the texts to the largest limit at which all groups take at most `budget` bytes of HTML; leave out the last
    groups where even the smallest does not do."""
    limit = next((each for each in _LIMITS if sum(_bytes(g, each) for g in groups) <= budget), _LIMITS[-1])
    kept: list[Group] = []
    used, was_cut = 0, False
    for each in groups:
        used += _bytes(each, limit)
        if used > budget:
            break
        kept.append(_cut(each, limit))
        was_cut |= kept[-1] != each
    return Shown(tuple(kept), limit if was_cut else None, len(groups) - len(kept))


def shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + "…"


def _modes(each: Group, before: str, after: str) -> list[str]:
    """The modes in which both models were checked."""
    return [mode for mode in ("greedy", "sampled") if each.passed(before, mode)[1] and each.passed(after, mode)[1]]


def _rate(each: Group, model: str, mode: str) -> float:
    passed, checked = each.passed(model, mode)
    return passed / checked


def _judged(each: Group, model: str) -> float:
    answer = each.greedy(model)
    return answer.judge if answer is not None and answer.judge is not None else 0.0


def _cut(each: Group, limit: int) -> Group:
    answers = tuple(replace(a, text=shorten(a.text, limit)) for a in each.answers)
    return replace(each, prompt=shorten(each.prompt, limit), answers=answers)


def _bytes(each: Group, limit: int) -> int:
    texts = [each.prompt, *(answer.text for answer in each.answers)]
    written = sum(len(str(escape(text[:limit])).encode("utf-8", "backslashreplace")) for text in texts)
    return written + 2 * len(each.id) + _GROUP_MARKUP + _ANSWER_MARKUP * len(each.answers)
