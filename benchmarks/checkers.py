"""How far the checkers agree with a reader: precision and recall of each kind on labelled answers of real models.

    python benchmarks/checkers.py            the table of docs/data.md, in a second

`benchmarks/labels.jsonl` holds the answers: what a reader said without seeing what the checker says (`behaves`: it does what the
check is named for; `good`: a careful person would be content with it), and on which half of them the checkers were corrected.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from whelp.checkers import KINDS, passes
from whelp.maths.stats import wilson
from whelp.text.formats import read_prompts

LABELS = Path(__file__).parent / "labels.jsonl"


def share(count: int, of: int) -> str:
    """A share with its 95% interval."""
    rate = wilson(count, of)
    return f"{rate.mean:.0%} ({rate.low:.0%} to {rate.high:.0%})" if of else "-"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    checks = {prompt.id: prompt.check for prompt in read_prompts("builtin:evaluation").records}
    rows = defaultdict(list)
    for line in LABELS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        check = checks[row["id"]]
        assert check is not None and check["kind"] == row["kind"], row["id"]
        rows[row["kind"]].append((passes(check, row["answer"]), row))
    print(
        "| kind | answers | precision | recall | precision, held-out half | recall, held-out half | passes that are good |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        cells = []
        for part in (rows[kind], [(p, row) for p, row in rows[kind] if row["half"] == "held-out"]):
            right = sum(passed and row["behaves"] for passed, row in part)
            cells.append(share(right, sum(passed for passed, _ in part)))
            cells.append(share(right, sum(row["behaves"] for _, row in part)))
        good = share(sum(p and row["good"] for p, row in rows[kind]), sum(p for p, _ in rows[kind]))
        print(f"| `{kind}` | {len(rows[kind])} | {' | '.join(cells)} | {good} |")


if __name__ == "__main__":
    main()
