"""Cases on which a reward model is audited: prompts with a good answer, and what may be liked better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whelp.text.formats.conversations import Problem, text_of
from whelp.text.formats.hashing import content_id
from whelp.text.formats.lines import read_source
from whelp.text.formats.records import read_by_id
from whelp.types import Case, Message

REQUIRED = ("prompt", "answer")
TEXTS = ("paraphrase", "wrong", "claim", "agrees", "other_language")


def read_cases(path: str | Path) -> tuple[Case, ...]:
    """The cases of a file or of `builtin:<name>`: prompt and answer (or completion), and of `TEXTS` what is known.

    Raises DataError that names every broken one by its line."""
    return read_by_id(read_source(path), _read, "case", " and ".join(REQUIRED))


def _read(row: dict[str, Any]) -> Case:
    given = dict(row)
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
