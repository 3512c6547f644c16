"""Rankings as an engine reads them: rows of tokens, which of them belong together, and who beats whom."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whelp.maths.preference import PreferenceTargets
from whelp.maths.stats import clusters_of
from whelp.text.chat import Chat, sequences, truncated
from whelp.types import Ranking, Sequences


def render(chat: Chat, rankings: Sequence[Ranking]) -> tuple[Sequences, dict[str, int]]:
    """All completions of all rankings in order, those of one prompt in one group; and how many were too long."""
    rendered = [chat.answer(r.prompt, text) for r in rankings for text in r.completions]
    group = [g for g, r in enumerate(rankings) for _ in r.completions]
    return sequences(rendered, group), truncated(rendered)


def rows_by_ranking(rankings: Sequence[Ranking]) -> list[list[int]]:
    """Which rows of the rendered sequences each ranking has."""
    rows, first = [], 0
    for ranking in rankings:
        rows.append(list(range(first, first + len(ranking.completions))))
        first += len(ranking.completions)
    return rows


def targets(rankings: Sequence[Ranking], label_smoothing: float = 0.0) -> PreferenceTargets:
    """All comparisons within each ranking: its probability for the better rank, 0.5 for a tie. `label_smoothing` is how often a
    label is thought to be the wrong way round."""
    width = max(len(ranking.completions) for ranking in rankings)
    group, slot, probability = [], [], []
    for g, ranking in enumerate(rankings):
        sure = ranking.probability + label_smoothing * (1 - 2 * ranking.probability)
        for i, rank in enumerate(ranking.ranks):
            group.append(g)
            slot.append(i)
            beats = [0.5 if rank == other else sure if rank < other else 1 - sure for other in ranking.ranks]
            beats[i] = math.nan
            probability.append(beats + [math.nan] * (width - len(beats)))
    margin = torch.tensor([rankings[g].margin for g in group])
    weight = torch.tensor([rankings[g].weight for g in group])
    return PreferenceTargets(torch.tensor(group), torch.tensor(slot), torch.tensor(probability), margin, weight)


def strict_pairs(rankings: Sequence[Ranking]) -> tuple[list[int], list[int], list[int]]:
    """Rows of the better and the worse answer of every pair that is no tie, and the ranking that it is from."""
    pairs = [
        (rows[i], rows[j], g)
        for g, (ranking, rows) in enumerate(zip(rankings, rows_by_ranking(rankings), strict=True))
        for i, rank in enumerate(ranking.ranks)
        for j, other in enumerate(ranking.ranks)
        if rank < other and ranking.probability > 0.5
    ]
    return [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]


def prompts_of(rankings: Sequence[Ranking]) -> list[int]:
    """A number for each prompt, shared by all rankings of answers to it."""
    return clusters_of([ranking.prompt.id for ranking in rankings]).tolist()


def by_prompt(rankings: Sequence[Ranking], pairs: Sequence[int]) -> Int[Tensor, "N"]:
    """The prompt of each pair, given the ranking that it is from: pairs of one prompt are alike."""
    return clusters_of([rankings[ranking].prompt.id for ranking in pairs])


def right(margin: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """1 where the better answer scores higher, 0.5 where they are equal."""
    return torch.where(margin == 0, 0.5, (margin > 0).float())
