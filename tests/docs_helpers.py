"""What the tests of the docs share."""

from __future__ import annotations

import re
from pathlib import Path


def commands(page: Path) -> list[str]:
    """Every line of a page's shell blocks that runs whelp; a line that ends in a backslash goes on."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith("whelp ")]
