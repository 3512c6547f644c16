"""What the tests of the docs share."""

from __future__ import annotations

import re
from pathlib import Path


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Every line of a page's shell blocks that runs whelp; a line that ends in a backslash goes on."""
    lines = [line.strip() for block in blocks(page, "bash") for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith("whelp ")]
