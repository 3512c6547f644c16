"""What people said comes out as records that whelp and others read."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from whelp.feedback.export import rows
from whelp.feedback.judgements import Judged, Vote
from whelp.text.formats import read_rankings
from whelp.text.formats.shapes import MARGINS
from whelp.types import Message

ITEMS = [
    Judged(1, (Message("user", "Hello?"),), ("Hi!", "What?", "Go away."), ("sft", "base", "base"), "greeting", None),
    Judged(2, (Message("system", "Be brief."), Message("user", "Why?")), ("So.", "Because."), ("", ""), "", None),
    Judged(3, (Message("user", "2 + 2?"),), ("4", "5"), ("", ""), "", (1, 2)),
]


def vote(item: int, user: str, ranks: tuple[int, ...], **more: object) -> Vote:
    usual = {"strength": None, "is_both_bad": False, "comment": "", "seconds": 4.0, "created_at": 9.0}
    return Vote(item, user, ranks, tuple(reversed(range(len(ranks)))), **(usual | more))


VOTES = [
    vote(2, "ann", (2, 1), strength=4, comment="short"),
    vote(1, "ann", (1, 2, 2)),
    vote(3, "ann", (1, 2)),
    vote(1, "bob", (1, 2, 3)),
    vote(2, "bob", (1, 1), is_both_bad=True),
]


def loaded(tmp_path: Path, format: str):
    file = tmp_path / f"{format}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(ITEMS, VOTES, format)[0]))
    return read_rankings(file)


def test_rankings_are_read_as_they_were_given(tmp_path: Path) -> None:
    found = loaded(tmp_path, "kwise")
    assert [(r.prompt.text, r.completions, r.ranks) for r in found.records] == [
        ("Hello?", ITEMS[0].completions, (1, 2, 2)),
        ("Hello?", ITEMS[0].completions, (1, 2, 3)),
        ("Why?", ITEMS[1].completions, (2, 1)),
        ("Why?", ITEMS[1].completions, (1, 1)),
    ]
    assert [r.margin for r in found.records] == [0.0, 0.0, MARGINS["significantly better"], 0.0]
    assert found.records[0].prompt.category == "greeting"
    assert rows(ITEMS, VOTES, "kwise")[1] == {"both bad": 1}


def test_every_pair_with_a_better_one_is_a_preference(tmp_path: Path) -> None:
    found = loaded(tmp_path, "preference")
    pairs = [(r.prompt.text, r.completions, r.weight) for r in found.records]
    assert sorted(pairs) == [
        ("Hello?", ("Hi!", "Go away."), 2.0),
        ("Hello?", ("Hi!", "What?"), 2.0),
        ("Hello?", ("What?", "Go away."), 1.0),
        ("Why?", ("Because.", "So."), 1.0),
    ]
    made, left_out = rows(ITEMS, VOTES, "preference")
    assert left_out == {"ties": 2, "both bad": 1}
    assert len(made) + left_out["ties"] == sum(len(list(combinations(v.ranks, 2))) for v in VOTES if v.item != 3), (
        "every pair is there or counted"
    )


def test_pairs_of_an_item_stand_together_and_are_split_together() -> None:
    many = [Judged(i, (Message("user", f"q{i}"),), ("a", "b", "c", "d"), ("",) * 4, "", None) for i in range(40)]
    votes = [vote(i, user, (1, 2, 3, 4)) for user in "ab" for i in range(40)]
    made, _ = rows(many, votes, "preference")
    ids = [row["id"] for row in made]
    assert len(ids) == 40 * 2 * 6
    assert sum(a != b for a, b in pairwise(ids)) == 39


def test_good_and_bad_for_kto(tmp_path: Path) -> None:
    made, left_out = rows(ITEMS, VOTES, "kto")
    assert [(row["completion"], row["label"]) for row in made] == [
        ("Hi!", True), ("What?", False), ("Go away.", False),
        ("Hi!", True), ("Go away.", False),  # the middle one is neither
        ("So.", False), ("Because.", True),
        ("So.", False), ("Because.", False),  # both bad
    ]  # fmt: skip
    assert left_out == {"ties": 2}
    assert loaded(tmp_path, "kto").format == "prompt/completion/label"


def test_the_format_of_openai() -> None:
    made, _ = rows(ITEMS, VOTES, "openai")
    assert made[-1] == {
        "input": {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "Because."}],
        "non_preferred_output": [{"role": "assistant", "content": "So."}],
    }


def test_raw_holds_everything_known_answers_too() -> None:
    made, left_out = rows(ITEMS, VOTES, "raw")
    assert left_out == {}
    assert [(row["id"], row["annotator"]) for row in made] == [
        ("1", "ann"),
        ("1", "bob"),
        ("2", "ann"),
        ("2", "bob"),
        ("3", "ann"),
    ]
    assert made[2] == {
        "id": "2", "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "source": "human", "annotator": "ann", "completions": ["So.", "Because."], "completion_sources": ["", ""],
        "ranks": [2, 1], "order": [1, 0], "strength": 4, "is_both_bad": False, "comment": "short", "seconds": 4.0,
        "created_at": 9.0, "is_verdict": False, "gold": None,
    }  # fmt: skip
    assert made[4]["gold"] == [1, 2]


@pytest.mark.parametrize("format", ["preference", "kwise", "kto", "openai", "raw"])
def test_of_no_votes_nothing_is_made(format: str) -> None:
    assert rows(ITEMS, [], format) == ([], {})
