"""Is a judge's word worth anything? Asked of pairs that people have judged, before any of it trains."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whelp.judges.base import Comparison, Label
from whelp.maths.calibration import expected_calibration_error, temperature, tempered
from whelp.maths.stats import clustered_bootstrap
from whelp.types import Estimate, Principle, Ranking


@dataclass(frozen=True, slots=True)
class Known:
    """A pair of which people prefer one, and which of the two stands first here: drawn, so that no place is the better one."""

    comparison: Comparison
    is_first_better: bool
    prompt: int
    """Pairs of one prompt share it: intervals draw prompts."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a judge is worth on pairs that people have judged."""

    agreement: Estimate | None
    """How often it prefers what people prefer, a draw counting half; None where it said nothing."""
    by_principle: Mapping[str, Estimate]
    position_bias: Estimate | None
    """How much more probable it thinks an answer for standing first, before both orders are averaged."""
    flips: Estimate | None
    """How often its two orders name different answers."""
    calibration_error: float | None
    calibration_error_after: float | None
    """With log-odds over the temperature that fits the other half of the prompts."""
    temperature: float
    """That fits all of them: above 1 for a judge that is surer than it should be."""
    asked: int
    unread: int
    """Comparisons to which it said nothing that can be read."""

    @property
    def is_trusted(self) -> bool:
        """Whether it agrees with people more often than a coin does, by its whole interval."""
        return self.agreement is not None and self.agreement.low > 0.5

    def as_dict(self) -> dict[str, Any]:
        return {
            "agreement": self.agreement and self.agreement.as_dict(),
            "by_principle": {name: found.as_dict() for name, found in self.by_principle.items()},
            "position_bias": self.position_bias and self.position_bias.as_dict(),
            "flips": self.flips and self.flips.as_dict(),
            "calibration_error": self.calibration_error,
            "calibration_error_after": self.calibration_error_after,
            "temperature": self.temperature,
            "asked": self.asked,
            "unread": self.unread,
            "trusted": self.is_trusted,
        }

    def verdict(self, judge: str) -> str:
        """One sentence on whether this judge may be trusted."""
        if self.agreement is None:
            return f"UNTRUSTED: {judge} said nothing that can be read of {self.asked} pairs."
        rate, low, high = (round(100 * x) for x in (self.agreement.mean, self.agreement.low, self.agreement.high))
        said = f"{rate}% (95% interval {low} to {high}%) of {self.asked - self.unread} pairs that people ranked"
        if self.is_trusted:
            return f"{judge} agrees with people on {said}."
        worse = "less than a coin would" if self.agreement.high < 0.5 else "which chance alone could do"
        return f"UNTRUSTED: {judge} agrees with people on {said}, {worse}."


def known_pairs(
    rankings: Sequence[Ranking], principles: Sequence[Principle], seed: int = 0, count: int | None = None
) -> list[Known]:
    """Pairs of which one is better, each under a principle that is drawn uniformly: all, or `count` of them drawn."""
    draw, found = random.Random(seed), []
    prompts: dict[str, int] = {}
    for ranking in rankings:
        for pair in ranking.pairs():
            if pair.probability == 0.5:
                continue
            is_first_better = draw.random() < 0.5
            first, second = (pair.chosen, pair.rejected) if is_first_better else (pair.rejected, pair.chosen)
            id = f"known-{len(found)}"
            asked = Comparison(id, ranking.prompt.messages, first, second, draw.choice(principles))
            found.append(Known(asked, is_first_better, prompts.setdefault(ranking.prompt.text, len(prompts))))
    return found if count is None or count >= len(found) else draw.sample(found, count)


def measure(known: Sequence[Known], heard: Mapping[str, Label | None]) -> Trust:
    """What a judge said, by the ids of the comparisons, beside what people did."""
    read = [(one, label) for one in known if (label := heard[one.comparison.id]) is not None]
    unread = len(known) - len(read)
    if not read:
        return Trust(None, {}, None, None, None, None, 1.0, len(known), unread)
    prompts = torch.tensor([one.prompt for one, _ in read])
    right = torch.tensor([_right(one, label) for one, label in read], dtype=torch.float64)
    principles = [one.comparison.principle.id for one, _ in read]
    chosen = {name: torch.tensor([p == name for p in principles]) for name in sorted(set(principles))}
    bias = torch.tensor([label.position_bias for _, label in read], dtype=torch.float64)
    flips = torch.tensor([_flips(label) for _, label in read], dtype=torch.float64)
    better = torch.tensor([label.first if one.is_first_better else 1 - label.first for one, label in read])
    margin = torch.logit(better.double().clamp(1e-6, 1 - 1e-6))
    return Trust(
        agreement=clustered_bootstrap(right, prompts),
        by_principle={name: clustered_bootstrap(right[mine], prompts[mine]) for name, mine in chosen.items()},
        position_bias=clustered_bootstrap(bias, prompts),
        flips=clustered_bootstrap(flips, prompts),
        calibration_error=expected_calibration_error(margin),
        calibration_error_after=expected_calibration_error(tempered(margin, prompts)),
        temperature=temperature(margin),
        asked=len(known),
        unread=unread,
    )


def _right(known: Known, label: Label) -> float:
    """1 where it prefers what people prefer, a half where it prefers neither."""
    if label.first == 0.5:
        return 0.5
    return float((label.first > 0.5) == known.is_first_better)


def _flips(label: Label) -> float:
    """1 where the two orders name different answers."""
    given, swapped = label.opinions
    return float((given.first > 0.5) == (swapped.first > 0.5))
