"""How poor a small language model is as a judge, and what makes one useful.

    python benchmarks/judges.py run --reward runs/x/reward     every way that is missing; stop and go on at will
    python benchmarks/judges.py run choice-0 --pairs 100       one way
    python benchmarks/judges.py tables                         write the table between its marks in docs/results.md

Each way of asking is measured as a recipe measures it before it uses a label (`whelp.judges.trust`): on pairs that people ranked,
of the prompts that a judge and no reward model learns from, under principles that are drawn, in both orders. `choice-4` is A or B
behind four ranked pairs, `verdict` whether each answer keeps the principle, `thought` A or B after a chain of thought,
`reward` a reward model that learned from people's other rankings, and `reward-told` the same one with the principle before the
conversation. `harm` has pairs on prompts that tempt to harm under the harmless principles, `all` pairs of every kind under all
principles. A way leaves `benchmarks/results/judge-<pairs>-<way>-<seed>.json`.

    whelp run assistant stages=[sft,reward] --output_dir runs/x     makes the reward model
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemble import workplace
from results import DOCS, RECORDS, commit, machine, percent, points, table, write_between

from whelp.constitution import HARM
from whelp.engines.base import SamplingParams
from whelp.judges.base import Judge, labels
from whelp.judges.local import LocalJudge, RewardJudge, examples_of
from whelp.judges.trust import Known, known_pairs, measure
from whelp.runs.files import read_json, write_json_atomic
from whelp.scorers import reward_engine
from whelp.text.formats import read_principles
from whelp.types import Estimate, Principle, Ranking
from whelp.workplace import Workplace

WAYS = ("choice-0", "choice-4", "verdict-0", "verdict-4", "thought-0", "reward", "reward-told")
KINDS = ("harm", "all")
SEEDS = (0, 1, 2)
PAIRS = 200
THOUGHT = SamplingParams(1, 0.0, 96, ("thought", 0))


def of_kind(kind: str, rankings: list[Ranking]) -> list[Ranking]:
    return [r for r in rankings if kind == "all" or r.prompt.category.startswith(HARM)]


def principles_of(kind: str) -> list[Principle]:
    return [p for p in read_principles("builtin:constitution") if kind == "all" or p.value == "harmless"]


def judge_of(place: Workplace, way: str, kind: str, reward: Path | None) -> Judge:
    if way.startswith("reward"):
        assert reward is not None
        engine = reward_engine(place, reward)
        gain = read_json(reward / "config.json")["reward_gain"]
        return RewardJudge(engine, engine.chat, "reward", gain, way == "reward-told")
    asked, _, count = way.partition("-")
    engine = place.engine(place.base)
    name = place.recipe.model
    place.add(engine, name, place.base)
    shown = examples_of(of_kind(kind, list(place.rankings.train)), principles_of(kind), asked, int(count))  # pyright: ignore[reportArgumentType]
    return LocalJudge(engine, engine.chat, name, asked, shown, THOUGHT)  # pyright: ignore[reportArgumentType]


def record_of(kind: str, way: str, seed: int) -> Path:
    return RECORDS / f"judge-{kind}-{way}-{seed}.json"


def run(place: Workplace, kind: str, way: str, seed: int, pairs: int, reward: Path | None) -> dict[str, Any]:
    known = known_pairs(of_kind(kind, list(place.rankings.held_out)), principles_of(kind), seed, pairs)
    judge = judge_of(place, way, kind, reward)
    started = time.perf_counter()
    said = labels(judge, [one.comparison for one in known])
    found = measure(known, {known[place].comparison.id: label for place, label in said})
    seconds = time.perf_counter() - started
    again = _says_again(judge, known)
    place.progress.say(found.verdict(f"{kind}, {way}, seed {seed}:"))
    return {
        "kind": kind, "way": way, "seed": seed, "pairs": len(known), "machine": machine(), "commit": commit(),
        "seconds": seconds, "labels_per_hour": 3600 * len(known) / seconds, "says_the_same_again": again, **found.as_dict(),
    }  # fmt: skip


def _says_again(judge: Judge, known: list[Known]) -> float:
    """Share of twenty comparisons of which it says the very same when it is asked once more."""
    some = [one.comparison for one in known[:20]]
    first, second = (dict(judge.opinions(some)) for _ in range(2))
    return sum(first[i] == second[i] for i in first) / len(first)


def tables() -> None:
    for kind in KINDS:
        if not any(record_of(kind, way, seed).exists() for way in WAYS for seed in SEEDS):
            continue
        rows = [_row(way, [read_json(record_of(kind, way, seed)) for seed in SEEDS]) for way in WAYS]
        heading = (
            "way", "agrees with people, by seed", "its orders differ", "more probable for standing first",
            "calibration error, before and after", "labels an hour", "trusted",
        )  # fmt: skip
        write_between(DOCS, f"judges-{kind}", table(heading, [row for row in rows if row]))


def _row(way: str, records: list[dict[str, Any]]) -> list[str]:
    made = [one for one in records if one]
    if not made:
        return []

    def each(show: Callable[[dict[str, Any]], str]) -> str:
        return "; ".join(show(one) for one in made)

    def interval(one: dict[str, Any], key: str) -> Estimate:
        return Estimate(**{name: one[key][name] for name in ("mean", "low", "high", "n")})

    return [
        way,
        each(lambda one: percent(interval(one, "agreement"))),
        each(lambda one: f"{one['flips']['mean']:.0%}"),
        each(lambda one: points(interval(one, "position_bias"))),
        each(lambda one: f"{one['calibration_error']:.2f}, {one['calibration_error_after']:.2f}"),
        f"{min(one['labels_per_hour'] for one in made):,.0f}",
        f"{sum(one['trusted'] for one in made)} of {len(made)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("ways", nargs="*", metavar="way", help=", ".join(WAYS))
    parser.add_argument("--reward", type=Path, help="the folder of a reward model of the default recipe's split")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    if options.what == "tables":
        tables()
        return
    place = workplace()
    for seed in SEEDS:
        for kind in KINDS:
            for way in options.ways or WAYS:
                if way not in WAYS:
                    sys.exit(f"no way {way!r}; expected some of {', '.join(WAYS)}")
                file = record_of(kind, way, seed)
                if file.exists() or (way.startswith("reward") and options.reward is None):
                    continue
                write_json_atomic(file, run(place, kind, way, seed, options.pairs, options.reward))


if __name__ == "__main__":
    main()
