"""Answers that were each called good or bad by themselves, as rankings of the answers to one prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whelp.text.formats.conversations import Problem
from whelp.text.formats.lines import Row

KEYS = ("prompt", "completion", "label")
OF_A_RANKING = ("source", "probability", "margin", "strength", "weight")
"""What is said of a ranking as a whole, and so of all answers in it."""
WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def label_of(value: Any) -> bool:
    """true and false, as JSON, numbers or tables write them."""
    if str(value).lower() not in WORDS:
        raise Problem(f"label is {value!r}; expected true or false")
    return WORDS[str(value).lower()]


def joined(rows: Sequence[Row], read: Callable[[Mapping[str, Any]], object]) -> tuple[list[Row], int]:
    """Records of `KEYS` as one record for each prompt, with its `completions` and their `labels`, and how many records are left
    out because all answers to their prompt have one label, so that nothing can be compared. Other rows stay as they are.

    `read` raises `Problem` for a record whose prompt or completion cannot be used. Records that count differently, or come from
    another source, are joined apart.
    """
    result: list[Row] = []
    groups: dict[str, list[tuple[Row, bool]]] = {}
    for row in rows:
        if not isinstance(row.value, dict) or any(key not in row.value for key in KEYS):
            result.append(row)
            continue
        try:
            label = label_of(row.value["label"])
            read(row.value)
        except Problem as problem:
            result.append(Row(row.line, problem=str(problem)))
            continue
        alike = [row.value.get(key) for key in ("prompt", *OF_A_RANKING)]
        groups.setdefault(json.dumps(alike, sort_keys=True, default=repr), []).append((row, label))
    uncompared = 0
    for group in groups.values():
        labels, first = [label for _, label in group], group[0][0]
        if len(set(labels)) == 1:
            uncompared += len(group)
            continue
        shared = {key: value for key, value in first.value.items() if key not in KEYS or key == "prompt"}
        completions = [row.value["completion"] for row, _ in group]
        result.append(Row(first.line, {**shared, "completions": completions, "labels": labels}))
    return sorted(result, key=lambda row: row.line), uncompared
