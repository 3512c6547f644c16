"""Files as items that people judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from whelp.feedback.judgements import NewItem
from whelp.text.formats import read_completions, read_rankings
from whelp.types import Prompt


def read_items(path: str | Path, is_gold: bool = False) -> tuple[list[NewItem], str]:
    """(items, the file's format): prompts with completions, in any format of rankings. `is_gold`: the ranks are known to be
    right; else they are left aside. Raises `DataError` that names broken lines."""
    loaded = read_rankings(path) if is_gold else read_completions(path)
    items = []
    for ranking in loaded.records:
        rank_of = dict(zip(ranking.completions, ranking.ranks, strict=True))
        ranks = tuple(rank_of.values()) if is_gold else None
        items.append(NewItem(ranking.prompt.messages, tuple(rank_of), category=ranking.prompt.category, gold=ranks))
    return items, loaded.format


def items_of(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], source: str) -> list[NewItem]:
    """What a model answered, by its prompt's id; without answers of no words, which nothing learns from, and without prompts to
    which it had only one thing to say."""
    items = []
    for prompt in prompts:
        distinct = tuple(dict.fromkeys(text.strip() for text in answers[prompt.id] if text.strip()))
        if len(distinct) > 1:
            items.append(NewItem(prompt.messages, distinct, (source,) * len(distinct), prompt.category))
    return items
