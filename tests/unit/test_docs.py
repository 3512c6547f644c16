"""What the docs say of the code is still there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_docs_name_exists():
    names = {name for page in (ROOT / "docs").rglob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in tests} == set()
