"""Answers that were each called good or bad by themselves, as rankings of the answers to one prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from whelp.text.formats.conversations import Problem
from whelp.text.formats.lines import Row

KEYS = ("prompt", "completion", "label")
WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def label_of(value: Any) -> bool:
    """true and false, as JSON, numbers or tables write them."""
    if str(value).lower() not in WORDS:
        raise Problem(f"label is {value!r}; expected true or false")
    return WORDS[str(value).lower()]


def joined(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Records of `KEYS` as one record for each prompt, with its `completions` and their `labels`, and how many records are left
    out because all answers to their prompt have one label, so that nothing can be compared. Other rows stay as they are."""
    result: list[Row] = []
    groups: dict[str, list[tuple[Row, bool]]] = {}
    for row in rows:
        if not isinstance(row.value, dict) or any(row.value.get(key) is None for key in KEYS):
            result.append(row)
            continue
        try:
            label = label_of(row.value["label"])
        except Problem as problem:
            result.append(Row(row.line, problem=str(problem)))
            continue
        prompt = json.dumps(row.value["prompt"], sort_keys=True, default=repr)  # what is no text is told of later
        groups.setdefault(prompt, []).append((row, label))
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
