"""A constitution from a file, and what is said of a broken one."""

from __future__ import annotations

import pytest

from whelp.errors import DataError
from whelp.text.formats import read_principles
from whelp.types import Principle

GOOD = """\
- id: plain
  value: helpful
  principle: Say it plainly.
  critique: What is not plain?
  revision: Make it plain.
  comparison: Which is plainer, A or B?
"""


def test_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert read_principles(path) == (
        Principle(
            "plain",
            "helpful",
            "Say it plainly.",
            "What is not plain?",
            "Make it plain.",
            "Which is plainer, A or B?",
        ),
    )


def test_every_broken_one_is_named_by_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + GOOD + GOOD.replace("plain\n  value: helpful", "odd\n  value: kind") + "- id: short\n")
    with pytest.raises(DataError) as error:
        read_principles(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("3 principles cannot be used:")
    assert "mine.yaml:7: has the id 'plain' of an earlier principle" in lines[1]
    assert "mine.yaml:13: has the value 'kind'; expected one of helpful, honest, harmless, autonomy" in lines[2]
    assert "mine.yaml:19: lacks value, principle, critique, revision, comparison" in lines[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "is not valid YAML"),
        ("a: b", "holds no list of records"),
        ("[]", "is empty"),
        ("- word", "no principle"),
    ],
)
def test_a_broken_file(tmp_path, text, problem):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_principles(path)
