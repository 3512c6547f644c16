"""Data files become demonstrations, rankings and prompts; every record that cannot is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from whelp.errors import DataError
from whelp.text.formats.conversations import Problem
from whelp.text.formats.hashing import content_id, prompt_hash, split_by_hash
from whelp.text.formats.labels import joined
from whelp.text.formats.lines import Row, Source, builtins, read_source
from whelp.text.formats.principles import read_principles
from whelp.text.formats.public import later_turns
from whelp.text.formats.shapes import DEMONSTRATIONS, PROMPTS, RANKINGS, Format, answered
from whelp.types import Demonstration, Message, Prompt, Ranking

__all__ = [
    "Loaded",
    "builtins",
    "content_id",
    "prompt_hash",
    "read_completions",
    "read_demonstrations",
    "read_principles",
    "read_prompts",
    "read_rankings",
    "read_source",
    "split_by_hash",
    "wanted",
    "with_one_id",
    "without_contradictions",
]

_SHOWN = 10
T = TypeVar("T", Demonstration, Ranking, Prompt)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """The records of one file and what to print about it."""

    records: tuple[R, ...]
    format: str
    path: str
    sha256: str
    """Of the file's bytes."""
    counts: Mapping[str, int]
    """`records` that are kept, and `duplicates` that are not; those of a ranking add to its weight."""


def read_demonstrations(path: str | Path) -> Loaded[Demonstration]:
    """Conversations from `messages`, `prompt`/`completion`, ShareGPT, Alpaca, or `text` that is a transcript; path is a file or
    `builtin:<name>`. Raises DataError."""
    return _load(read_source(path), DEMONSTRATIONS)


def read_rankings(path: str | Path) -> Loaded[Ranking]:
    """Rankings of `prompt`/`completions`/`ranks`, `prompt`/`chosen`/`rejected`, `prompt`/`completion`/`label` or HH transcripts.

    Texts may be strings or lists of messages; without a prompt, chosen and rejected are whole conversations. The answers to
    one prompt with labels become one ranking, good above bad; where all have one label they are left out and counted as
    `uncompared`. Pairs of answers that are ranked both ways round are kept and counted. Several rankings of answers to one
    prompt share the first one's id. `path` is a file, a hub id, `builtin:<name>` or `db:<project>`. Raises DataError that names
    every broken line.
    """
    return _rankings(read_source(path))


def read_completions(path: str | Path) -> Loaded[Ranking]:
    """As `read_rankings`, for what people are still to rank: records of prompt and completions need no ranks."""
    source = read_source(path)
    return _rankings(replace(source, rows=tuple(replace(row, value=_tied(row.value)) for row in source.rows)))


def _tied(row: Any) -> Any:
    """A record that nobody has ranked, as one in which all are alike."""
    if not isinstance(row, dict) or not isinstance(row.get("completions"), list):
        return row
    ranks = row.get("ranks") or [None]
    is_unranked = isinstance(ranks, list) and all(rank is None for rank in ranks)
    return row | {"ranks": [1] * len(row["completions"])} if is_unranked else row


def _rankings(source: Source) -> Loaded[Ranking]:
    rows, left_out = joined(source.rows, answered)
    if not rows and left_out:
        raise DataError(
            f"{source.name}: no prompt has both a completion with label true and one with label false, of one weight, to compare."
        )
    loaded = _load(replace(source, rows=tuple(rows)), RANKINGS)
    loaded = replace(loaded, records=with_one_id(loaded.records))
    found = left_out | {"contradictory pairs": len(contradictions(loaded.records))}
    return replace(loaded, counts={**loaded.counts, **{name: count for name, count in found.items() if count}})


def with_one_id(rankings: Sequence[Ranking]) -> tuple[Ranking, ...]:
    """A prompt that is ranked again, with other answers, has the id that it had first: pairs of one prompt are alike. Where two
    files gave two prompts one id, the later one takes that of its content."""
    owner: dict[str, tuple[Message, ...]] = {}
    ids: dict[tuple[Message, ...], str] = {}
    for messages, id in ((r.prompt.messages, r.prompt.id) for r in rankings):
        if messages not in ids:
            ids[messages] = id if id not in owner else content_id(messages)
            owner[ids[messages]] = messages
    return tuple(replace(r, prompt=replace(r.prompt, id=ids[r.prompt.messages])) for r in rankings)


Compared = tuple[str, frozenset[str]]
"""The hash of a prompt, and two answers to it of which one is the better."""


def contradictions(rankings: Sequence[Ranking]) -> set[Compared]:
    """The pairs of answers to one prompt that are ranked one way in one record and the other way in another."""
    winners: dict[Compared, set[str]] = {}
    for ranking in rankings:
        for compared, winner in _compared(ranking):
            winners.setdefault(compared, set()).add(winner)
    return {compared for compared, chosen in winners.items() if len(chosen) > 1}


def without_contradictions(loaded: Loaded[Ranking]) -> Loaded[Ranking]:
    """Without the records on either side of a contradiction, which are counted as `contradictory records left out`."""
    doubtful = contradictions(loaded.records)
    kept = tuple(r for r in loaded.records if all(compared not in doubtful for compared, _ in _compared(r)))
    lost = len(loaded.records) - len(kept)
    counts = {**loaded.counts, "records": len(kept), **({"contradictory records left out": lost} if lost else {})}
    return replace(loaded, records=kept, counts=counts)


def _compared(ranking: Ranking) -> Iterator[tuple[Compared, str]]:
    """Every pair of a ranking that is no tie, and its better answer."""
    prompt = prompt_hash(ranking.prompt.messages)
    for pair in ranking.pairs():
        if pair.probability != 0.5 and pair.chosen != pair.rejected:
            yield (prompt, frozenset((pair.chosen, pair.rejected))), pair.chosen


def read_prompts(path: str | Path) -> Loaded[Prompt]:
    """Prompts from `prompt`, `messages` or `text`, those of demonstrations and rankings, or of a public set (`PUBLIC_SETS`).

    `id`, `category`, `check` and `pair` are kept where given; a public set's own columns become them. Turns of MT-Bench behind
    the first are counted as `later turns left out`. `path` is a file or `builtin:<name>`. Raises DataError.
    """
    source = read_source(path)
    loaded = _load(source, PROMPTS)
    later = sum(later_turns(row.value) for row in source.rows)
    return replace(loaded, counts={**loaded.counts, **({"later turns left out": later} if later else {})})


def _load(source: Source, formats: Sequence[Format[T]]) -> Loaded[T]:
    if not source.rows:
        raise DataError(f"{source.name}: is empty; expected records of {wanted(formats)}")
    kept: dict[str, T] = {}
    lines_of_ids: dict[str, tuple[int, tuple[Message, ...]]] = {}
    names: dict[str, None] = {}
    problems: list[str] = []
    for row in source.rows:
        try:
            format, record = _read(row, formats)
            _claim_id(record, row.line, lines_of_ids)
        except Problem as problem:
            problems.append(f"{source.name}:{row.line}: {problem}")
            continue
        names[format.name] = None
        content = _content(record)
        kept[content] = _again(kept[content], record) if content in kept else record
    if problems:
        raise DataError(_report(problems, source))
    counts = {"records": len(kept), "duplicates": len(source.rows) - len(kept)}
    return Loaded(tuple(kept.values()), ", ".join(names), source.name, source.sha256, counts)


def _read(row: Row, formats: Sequence[Format[T]]) -> tuple[Format[T], T]:
    if row.problem:
        raise Problem(row.problem)
    if not isinstance(row.value, dict):
        raise Problem("is not a JSON object")
    for format in formats:
        if format.fits(row.value):
            return format, format.read(row.value)
    raise Problem(f"has the keys {', '.join(row.value) or '(none)'}; expected {wanted(formats)}")


def _claim_id(
    record: Demonstration | Ranking | Prompt, line: int, lines: dict[str, tuple[int, tuple[Message, ...]]]
) -> None:
    """One id means one conversation: everything that is stored and compared by id rests on it."""
    owner = record.prompt if isinstance(record, Ranking) else record
    first, messages = lines.setdefault(owner.id, (line, owner.messages))
    if messages != owner.messages:
        raise Problem(f"has the id {owner.id!r} of line {first}, which is another conversation")


def _again(kept: T, record: T) -> T:
    """A vote that is cast again counts again; what else is said twice is kept once."""
    if isinstance(kept, Ranking) and isinstance(record, Ranking):
        return replace(kept, weight=kept.weight + record.weight)
    return kept


def _content(record: Demonstration | Ranking | Prompt) -> str:
    """A record without its id, which two copies of one text need not share."""
    values = asdict(record)
    values.get("prompt", values).pop("id")
    return json.dumps(values, sort_keys=True)


def _report(problems: list[str], source: Source) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (
        f"{source.name}: {len(problems)} of {len(source.rows)} records cannot be used:\n{shown}{more}\n"
        "Correct these records or take them out; nothing is dropped silently."
    )


def wanted(formats: Sequence[Format[Any]]) -> str:
    """The keys that records of these formats have, as users write them."""
    keys = ("/".join(format.keys) for format in formats if format.keys)
    return " or ".join(dict.fromkeys(written.replace("completions/labels", "completion/label") for written in keys))
