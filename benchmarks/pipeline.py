"""Time and memory of the default run, and the start-up time of the command line.

    python benchmarks/pipeline.py [--recipe assistant] [--output_dir runs/benchmark]

Prints a table and writes `<output_dir>/benchmark.json`. The model must be in the cache (`whelp run` fetches it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WHELP = [sys.executable, "-m", "whelp"]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="assistant")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()
    if options.output_dir.exists():
        sys.exit(f"{options.output_dir} exists: a stage that is already done costs nothing. Give another --output_dir.")

    help_seconds = [seconds([*WHELP, "--help"]) for _ in range(5)]
    total = seconds([*WHELP, "run", options.recipe, "--output_dir", str(options.output_dir)])
    stages = {file.parent.name: json.loads(file.read_text())["cost"] for file in options.output_dir.glob("*/DONE.json")}
    result = {
        "recipe": options.recipe,
        "seconds": total,
        "peak_memory_mb": max(cost["peak_memory_mb"] for cost in stages.values()),
        "help_seconds": {"median": statistics.median(help_seconds), "min": min(help_seconds), "max": max(help_seconds)},
        "stages": stages,
    }
    (options.output_dir / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, cost in stages.items():
        print(f"{name:10} {cost['seconds']:8.0f} s {cost['peak_memory_mb']:8.0f} MB")
    print(f"{'whole run':10} {total:8.0f} s {result['peak_memory_mb']:8.0f} MB")
    print(f"whelp --help: {result['help_seconds']['median']:.2f} s")


if __name__ == "__main__":
    main()
