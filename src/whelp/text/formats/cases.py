"""Cases on which a reward model is audited: prompts with a good answer, and what may be liked better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whelp.errors import DataError
from whelp.text.formats.conversations import Problem, text_of
from whelp.text.formats.hashing import content_id
from whelp.text.formats.lines import Row, read_source
from whelp.types import Case, Message

REQUIRED = ("prompt", "answer")
TEXTS = ("paraphrase", "wrong", "claim", "agrees", "other_language")


def read_cases(path: str | Path) -> tuple[Case, ...]:
    """The cases of a file or of `builtin:<name>`: prompt and answer (or completion), and of `TEXTS` what is known.

    Raises DataError that names every broken one by its line."""
    source = read_source(path)
    cases: dict[str, Case] = {}
    problems: list[str] = []
    for row in source.rows:
        try:
            case = _read(row)
            if case.id in cases:
                raise Problem(f"has the id {case.id!r} of an earlier case")
            cases[case.id] = case
        except Problem as problem:
            problems.append(f"  {source.name}:{row.line}: {problem}")
    if problems:
        raise DataError("\n".join([f"{source.name}: {len(problems)} cases cannot be used:", *problems]))
    if not cases:
        raise DataError(f"{source.name}: is empty; expected cases with {' and '.join(REQUIRED)}")
    return tuple(cases.values())


def _read(row: Row) -> Case:
    if row.problem:
        raise Problem(row.problem)
    if not isinstance(row.value, dict):
        raise Problem(f"is no case; expected the keys {' and '.join(REQUIRED)}")
    given: dict[str, Any] = dict(row.value)
    given.setdefault("answer", given.get("completion"))
    missing = [key for key in REQUIRED if given.get(key) is None]
    if missing:
        raise Problem(f"lacks {' and '.join(missing)}")
    texts = {key: text_of(given[key], key) for key in (*REQUIRED, *TEXTS) if given.get(key) is not None}
    words = given.get("topic_words", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Problem(f"has the topic_words {words!r}; expected a list of words")
    id = given.get("id") or content_id((Message("user", texts["prompt"]),))
    return Case(str(id), str(given.get("category", "")), topic_words=tuple(words), **texts)
