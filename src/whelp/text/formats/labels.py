"""Answers that were each called good or bad by themselves, as rankings of the answers to one prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whelp.text.formats.conversations import Problem
from whelp.text.formats.lines import Row

KEYS = ("prompt", "completion", "label")
WEIGHTS = {"probability": 1.0, "margin": 0.0, "strength": None, "weight": 1.0}
"""What is said of a ranking as a whole, and so of all answers in it; and what is meant where nothing is said."""
WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def label_of(value: Any) -> bool:
    """true and false, as JSON, numbers or tables write them."""
    if str(value).lower() not in WORDS:
        raise Problem(f"label is {value!r}; expected true or false")
    return WORDS[str(value).lower()]


def joined(rows: Sequence[Row], read: Callable[[Mapping[str, Any]], object]) -> tuple[list[Row], dict[str, int]]:
    """Records of `KEYS` as one record for each prompt, with its `completions` and their `labels`, and counts of what is left out:
    `uncompared` records, all answers to whose prompt have one label, and `contradictory labels` of an answer that is called both
    good and bad. Other rows stay as they are, and an answer that is labelled again as before counts once.

    `read` raises `Problem` for a record whose prompt or completion cannot be used. What counts differently is joined apart.
    """
    result: list[Row] = []
    groups: dict[str, list[tuple[Row, bool]]] = {}
    for row in rows:
        if not _is_labelled(row.value):
            result.append(row)
            continue
        try:
            label = label_of(row.value["label"])
            read(row.value)
        except Problem as problem:
            result.append(Row(row.line, problem=str(problem)))
            continue
        weights = [row.value.get(key, usual) for key, usual in WEIGHTS.items()]
        groups.setdefault(_written([row.value["prompt"], weights]), []).append((row, label))
    left_out = Counter[str]()
    for group in groups.values():
        labels: dict[str, set[bool]] = {}
        for row, label in group:
            labels.setdefault(_written(row.value["completion"]), set()).add(label)
        sure = {answer: said.pop() for answer, said in labels.items() if len(said) == 1}
        agreed = [row for row, _ in group if _written(row.value["completion"]) in sure]
        left_out["contradictory labels"] += len(group) - len(agreed)
        if len(set(sure.values())) == 1:
            left_out["uncompared"] += len(agreed)
        elif sure:
            result.append(_ranking(agreed, sure))
    return sorted(result, key=lambda row: row.line), dict(left_out)


def _is_labelled(value: Any) -> bool:
    """A table of several formats has null where a column is none of a record's."""
    return (
        isinstance(value, dict)
        and all(key in value for key in KEYS)
        and (value["completion"], value["label"]) != (None, None)
    )


def _ranking(rows: Sequence[Row], labels: Mapping[str, bool]) -> Row:
    """The answers to one prompt, each once; who labelled them are all named."""
    first = rows[0]
    answers = {_written(row.value["completion"]): row.value["completion"] for row in rows}
    sources = dict.fromkeys(str(row.value["source"]) for row in rows if row.value.get("source"))
    shared = {key: value for key, value in first.value.items() if key not in KEYS or key == "prompt"}
    shared |= {"source": ", ".join(sources)} if sources else {}
    return Row(
        first.line, shared | {"completions": [*answers.values()], "labels": [labels[answer] for answer in answers]}
    )


def _written(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
