"""Votes as records that train: every format of the field, and all that was said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from whelp.errors import DataError
from whelp.feedback.database import DATABASE_VARIABLE, default_database
from whelp.feedback.judgements import Judged, Vote

if TYPE_CHECKING:
    from whelp.feedback.store import Store

Format = Literal["preference", "kwise", "kto", "openai", "raw"]
Row = dict[str, Any]
STRENGTH_NAMES = {1: "negligibly better", 2: "slightly better", 3: "better", 4: "significantly better"}
"""As readers of rankings know them."""


def rows_of(store: Store, project: int, format: Format) -> tuple[list[Row], dict[str, int]]:
    """What `rows` makes of all that was said in a project."""
    votes = store.votes(project) + store.votes(project, is_verdict=True)
    return rows(store.items(project), votes, format, store.withdrawn(project))


def rows(
    items: Sequence[Judged], votes: Sequence[Vote], format: Format, withdrawn: Collection[int] = ()
) -> tuple[list[Row], dict[str, int]]:
    """Records, and what of the votes is not in them: `ties`, pairs that are no preference, and `both bad`. The records of an item
    share its id and stand together, so that no split parts them. Where there is a verdict on an item it counts instead of the
    votes; items that are `withdrawn`, and those whose answer was known, are left out. Raw holds everything."""
    by_item = {item.id: item for item in items}
    counted, left_out = list(votes), Counter[str]()
    if format != "raw":
        counted, left_out = _that_train([vote for vote in votes if by_item[vote.item].gold is None], withdrawn)
    counted.sort(key=lambda vote: vote.item)  # stable: the votes on one item stay in their order
    made = [row for vote in counted for row in FORMATS[format](by_item[vote.item], vote)]
    ties = sum(vote.ranks[a] == vote.ranks[b] for vote in counted for a, b in combinations(range(len(vote.ranks)), 2))
    if format not in ("kwise", "raw"):
        left_out["ties"] = ties
    if format not in ("kto", "raw"):
        left_out["both bad"] = sum(vote.is_both_bad for vote in counted)
    return made, {name: count for name, count in left_out.items() if count}


def _that_train(votes: Sequence[Vote], withdrawn: Collection[int]) -> tuple[list[Vote], Counter[str]]:
    """Those that count, and why the others do not."""
    settled = {vote.item for vote in votes if vote.is_verdict}
    counted, left_out = [], Counter[str]()
    for vote in votes:
        if vote.item in withdrawn:
            left_out["votes on withdrawn items"] += 1
        elif vote.item in settled and not vote.is_verdict:
            left_out["votes that a verdict settled"] += 1
        else:
            counted.append(vote)
    return counted, left_out


def votes_of(project: str, database: str | None = None) -> list[Row]:
    """The rankings of a project, as records that train. Raises `DataError` where there is no such project or no vote in it."""
    from whelp.feedback.store import Store

    named = database or default_database()
    if "://" not in named and not Path(named).is_file():
        raise DataError(f"db:{project}: there is no database {named}; {DATABASE_VARIABLE} names another.")
    store = Store(named)
    try:
        found, _ = rows_of(store, store.project(project), "kwise")
    finally:
        store.close()
    if not found:
        raise DataError(f"db:{project}: nobody has voted yet.")
    return found


def preference(item: Judged, vote: Vote) -> Iterator[Row]:
    """A record for each pair of which one is better."""
    for better, worse in _better(vote):
        yield (
            _about(item, vote)
            | {"chosen": item.completions[better], "rejected": item.completions[worse]}
            | _strength(vote)
        )


def kwise(item: Judged, vote: Vote) -> Iterator[Row]:
    """A record for each vote, ties with it."""
    yield _about(item, vote) | {"completions": list(item.completions), "ranks": list(vote.ranks)} | _strength(vote)


def kto(item: Judged, vote: Vote) -> Iterator[Row]:
    """Completions that are good or bad: the best and the worst of a vote, and both of a pair that is bad."""
    best, worst = min(vote.ranks), max(vote.ranks)
    for completion, rank in zip(item.completions, vote.ranks, strict=True):
        if vote.is_both_bad or (best < worst and rank in (best, worst)):
            yield _about(item, vote) | {"completion": completion, "label": rank == best and not vote.is_both_bad}


def openai(item: Judged, vote: Vote) -> Iterator[Row]:
    """What OpenAI's preference fine-tuning takes."""
    for better, worse in _better(vote):
        yield {
            "input": {"messages": _prompt(item), "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": item.completions[better]}],
            "non_preferred_output": [{"role": "assistant", "content": item.completions[worse]}],
        }


def raw(item: Judged, vote: Vote) -> Iterator[Row]:
    """All that is known of a vote."""
    yield _about(item, vote) | {
        "completions": list(item.completions),
        "completion_sources": list(item.sources),
        "ranks": list(vote.ranks),
        "order": list(vote.order),
        "strength": vote.strength,
        "is_both_bad": vote.is_both_bad,
        "comment": vote.comment,
        "seconds": vote.seconds,
        "created_at": vote.created_at,
        "is_verdict": vote.is_verdict,
        "gold": None if item.gold is None else list(item.gold),
    }


FORMATS: Mapping[Format, Callable[[Judged, Vote], Iterator[Row]]] = {
    "preference": preference,
    "kwise": kwise,
    "kto": kto,
    "openai": openai,
    "raw": raw,
}


def _about(item: Judged, vote: Vote) -> Row:
    category = {"category": item.category} if item.category else {}
    return {"id": str(item.id), **category, "prompt": _prompt(item), "source": "human", "annotator": vote.user}


def _prompt(item: Judged) -> list[dict[str, str]]:
    return [message.as_dict() for message in item.messages]


def _better(vote: Vote) -> Iterator[tuple[int, int]]:
    """(better, worse) of each pair that is no tie."""
    for a, b in combinations(range(len(vote.ranks)), 2):
        if vote.ranks[a] != vote.ranks[b]:
            yield (a, b) if vote.ranks[a] < vote.ranks[b] else (b, a)


def _strength(vote: Vote) -> Row:
    return {} if vote.strength is None else {"strength": STRENGTH_NAMES[vote.strength]}
