"""How fast whelp is beside what people use instead: the same work, in turns, on one machine.

    python benchmarks/races.py run                what is missing on this machine, in order; stop and go on at will
    python benchmarks/races.py run decode-64      one race
    python benchmarks/races.py tables             write the tables between their marks in docs/benchmarks.md

Every side is a process that loads its model and then waits. One turn each to warm up, then `ROUNDS` turns each, one after the
other: A B A B. A ratio is that of two turns of one round, its median with the least and the largest. Both sides are
given the same weights, tokens and lengths, and a race in which they did not do the same work (tokens made, tokens trained on,
optimizer steps) is refused. `limit` runs the same matrix products and nothing else. The machine must do nothing beside.

A race leaves `benchmarks/results/speed/<race>-<machine>-<number format>.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from environments import CURRENT, PPO, python_of
from results import RECORDS, ROOT, commit, machine, table, write_between

from whelp.engines.devices import choose, physical_cores
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.manifest import Run
from whelp.text.chat import Rendered
from whelp.workplace import Workplace

RACERS = Path(__file__).parent / "racers"
ROUNDS = 3
DOCS = ROOT / "docs" / "benchmarks.md"
Work = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A process in a race: `script` in `racers/`, run by the Python of `environment` (None: this one)."""

    name: str
    script: str = "ours.py"
    environment: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """`sides[0]` is whelp's. `target`: how many times as fast as the best of its peers; None: no peer, or none was set."""

    name: str
    what: str
    work: Callable[[Workplace], Work]
    sides: tuple[Side, ...]
    target: float | None = None
    memory_target: float | None = None
    """The share of the peer's peak memory that whelp's may be."""
    limit_target: float | None = None

    @property
    def record(self) -> Path:
        return record_of(self.name, machine(), str(choose().dtype))


# -- the work ---------------------------------------------------------------------------------------------------------


def every(count: int, items: Sequence[Any]) -> list[Any]:
    """`count` of them, evenly spread."""
    return [items[i * len(items) // count] for i in range(count)]


def prompts(place: Workplace, chosen: Sequence[Any]) -> Work:
    chat = place.chat(place.base)
    return {"texts": [p.text for p in chosen], "prompts": [chat.prompt(p) for p in chosen], "temperature": 0.7}


def decoding(count: int) -> Callable[[Workplace], Work]:
    """Prompts of many lengths, and answers that end anywhere up to 48 tokens."""

    def work(place: Workplace) -> Work:
        draw = random.Random(0)
        lengths = [48, *(draw.randint(4, 48) for _ in range(count - 1))]
        single = [p for p in place.prompts.records if len(p.messages) == 1]
        return prompts(place, every(count, single)) | {"kind": "decode", "lengths": lengths}

    return work


def ppo_iteration(place: Workplace) -> Work:
    """32 prompts of about 45 tokens, 48 tokens each, four epochs of one minibatch."""
    chat = place.chat(place.base)
    single = [p for p in place.prompts.records if len(p.messages) == 1]
    near = sorted(single, key=lambda p: abs(len(chat.prompt(p)) - 45))[:32]
    epochs = 4
    settings = {
        "ppo.batch_size": 32,
        "ppo.num_ppo_epochs": epochs,
        "ppo.num_mini_batches": 1,
        "ppo.num_generations": 1,
        "ppo.response_length": 48,
        "ppo.learning_rate": 1e-6,
        "ppo.critic_warmup_iterations": 0,
    }
    return prompts(place, near) | {"kind": "ppo", "lengths": [48] * 32, "epochs": epochs, "settings": settings}


def rows_of(rendered: Sequence[Rendered], group: Sequence[int] = ()) -> Work:
    return {
        "tokens": [r.tokens for r in rendered],
        "is_response": [r.is_response for r in rendered],
        "group": list(group) or list(range(len(rendered))),
    }


def scoring(place: Workplace) -> Work:
    chat = place.chat(place.base, 512)
    return rows_of([chat.demonstration(d) for d in every(32, place.demonstrations.records)]) | {"kind": "forward"}


def imitation(place: Workplace) -> Work:
    config = place.recipe.sft
    chat = place.chat(place.base, config.max_length)
    rendered = [chat.demonstration(d) for d in every(32, place.demonstrations.records)]
    return rows_of(rendered) | {"kind": "sft", "batch": config.per_step_batch_size, "epochs": config.num_train_epochs}


def rankings(place: Workplace, only_pairs: bool = False) -> Work:
    """Rankings of four answers; `only_pairs`: the best and the worst answer of each."""
    config = place.recipe.reward
    chat = place.chat(place.base, config.max_length)
    rendered, group, compared = [], [], []
    four = [ranking for ranking in place.rankings.train if len(ranking.completions) == 4]
    for number, ranking in enumerate(every(32, four)):
        ordered = sorted(zip(ranking.ranks, ranking.completions, strict=True))
        answers = [ordered[0], ordered[-1]] if only_pairs else ordered
        compared += combinations(range(len(rendered), len(rendered) + len(answers)), 2)
        rendered += [chat.answer(ranking.prompt, text) for _, text in answers]
        group += [number] * len(answers)
    batch = config.per_step_batch_size * len(compared) // 32
    return rows_of(rendered, group) | {
        "kind": "reward",
        "pairs": compared,
        "batch": batch,
        "epochs": config.num_train_epochs,
    }


def pairs(place: Workplace) -> Work:
    return rankings(place, only_pairs=True)


# -- the races --------------------------------------------------------------------------------------------------------

STATIC = Side("transformers, static cache", "peers.py", CURRENT, {"cache_implementation": "static"})
DYNAMIC = Side("transformers, dynamic cache", "peers.py", CURRENT)
TRANSFORMERS = Side("transformers", "peers.py", CURRENT, {"batch": 8})
TRL = Side("TRL", "peers.py", CURRENT)
TRL_PPO = Side("TRL 1.12", "peers.py", PPO)
LORA = Side("TRL 1.12, LoRA", "peers.py", PPO, {"lora": True})
DEFAULT = Side("whelp")
FOUR = Side("whelp", settings={"trainable_layers": 4})
ALL = Side("whelp", settings={"trainable_layers": "all"})
ALL_LORA = Side("whelp", settings={"trainable_layers": "all", "lora_rank": 16})
LIMIT = Side("limit", "limit.py")


def limit(layers: int) -> Side:
    return Side("limit", "limit.py", settings={"layers": layers})


DECODERS = (DEFAULT, STATIC, DYNAMIC, LIMIT)
RACES = (
    Race("decode-64", "decoding, 64 rows", decoding(64), DECODERS, 3, limit_target=0.5),
    Race("decode-16", "decoding, 16 rows", decoding(16), DECODERS, 3, limit_target=0.5),
    Race("forward", "scoring", scoring, (DEFAULT, TRANSFORMERS, LIMIT), limit_target=0.75),
    Race("sft", "SFT, the default: 16 layers", imitation, (DEFAULT, TRL, limit(16)), 3, limit_target=0.55),
    Race("sft-all", "SFT, all layers", imitation, (ALL, TRL, LIMIT), 1.5, limit_target=0.55),
    Race("reward", "reward model, the default: 8 layers", rankings, (DEFAULT, TRL, limit(8)), 4, limit_target=0.55),
    Race("reward-pairs", "the same, two answers a prompt", pairs, (DEFAULT, TRL, limit(8)), 4, limit_target=0.55),
    Race("reward-all", "the same, all layers", pairs, (ALL, TRL, LIMIT), 1.5, limit_target=0.55),
    Race("ppo", "PPO, 4 layers", ppo_iteration, (FOUR, TRL_PPO), 5, 1 / 3),
    Race("ppo-8", "PPO, the default: 8 layers", ppo_iteration, (DEFAULT, TRL_PPO), 5, 1 / 3),
    Race("ppo-all", "PPO, all layers", ppo_iteration, (ALL, TRL_PPO), 1.3, 2 / 3),
    Race("ppo-lora", "PPO, 4 layers, against LoRA", ppo_iteration, (FOUR, LORA), 3),
    Race("ppo-all-lora", "PPO, LoRA in all layers on both sides", ppo_iteration, (ALL_LORA, LORA)),
)


COUNTED = {"generated": "tokens", "scored": "tokens", "pairs": "pairs", "trained": "tokens"}
"""What a turn counts, and in what."""


class Racer:
    """A side's process. What it prints beside its answers goes to `log`."""

    def __init__(self, side: Side, work: Path, log: Path):
        python = python_of(side.environment) if side.environment else sys.executable
        command = [str(python), str(RACERS / side.script), str(work), json.dumps(side.settings)]
        self.side, self.log = side, log
        with log.open("w") as errors:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)

    def turn(self, word: str = "go") -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(word, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            sys.exit(f"{self.side.name} broke down:\n{self.log.read_text()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


@contextmanager
def racers(sides: Sequence[Side], work: Work) -> Iterator[list[Racer]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "work.json"
        file.write_text(json.dumps(work))
        started = []
        for number, side in enumerate(sides):
            started.append(Racer(side, file, Path(folder) / f"{number}.log"))
            stack.callback(started[-1].close)
        yield started


def contest(race: Race, work: Work, rounds: int = ROUNDS) -> dict[str, Any]:
    """The turns of each side by its name, without the first, and its peak memory."""
    turns: dict[str, list[dict[str, Any]]] = {side.name: [] for side in race.sides}
    with racers(race.sides, work) as sides:
        for number in range(rounds + 1):
            for racer in sides:
                found = racer.turn()
                note = "" if number else " (warm-up)"
                print(f"{race.name}, {racer.side.name}: {found['seconds']:.2f} s{note}", flush=True)
                turns[racer.side.name].append(found)
            refuse_unequal(race, turns)
        ends = {racer.side.name: racer.turn("end") for racer in sides}
    return {
        "turns": {name: found[1:] for name, found in turns.items()},
        "peak_mb": {name: end["peak_mb"] for name, end in ends.items()},
        "device_peak_mb": {name: end["device_peak_mb"] for name, end in ends.items()},
        "versions": {name: end["versions"] for name, end in ends.items()},
    }


def start(*overrides: str) -> tuple[Workplace, Work]:
    """Where the default recipe would run, and what all sides are told of it."""
    place = Workplace(load_recipe("assistant", overrides), Run(Path(tempfile.mkdtemp())), PlainProgress())
    dtype = str(place.compute.dtype).removeprefix("torch.")
    return place, {"model": str(place.base), "dtype": dtype, "threads": physical_cores(), "settings": {}}


def run(race: Race) -> dict[str, Any]:
    place, common = start()
    return {
        "machine": machine(),
        "dtype": common["dtype"],
        "threads": common["threads"],
        "commit": commit(),
        **contest(race, common | race.work(place)),
    }


def refuse_unequal(race: Race, turns: dict[str, list[dict[str, Any]]]) -> None:
    """What both sides counted in the newest round must be the same."""
    mine = turns[race.sides[0].name][-1]
    for side in race.sides[1:]:
        for name in (mine.keys() & turns[side.name][-1].keys()) - {"seconds"}:
            if mine[name] != turns[side.name][-1][name]:
                sys.exit(
                    f"{race.name}: {side.name} has {name} {turns[side.name][-1][name]}, {race.sides[0].name} {mine[name]}; "
                    "expected as many."
                )


def record_of(name: str, machine: str, dtype: str) -> Path:
    """Where a measurement is kept; machines whose names are the same may multiply other number formats."""
    return RECORDS / "speed" / f"{name}-{slug(machine)}-{dtype.removeprefix('torch.')}.json"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# -- the tables -------------------------------------------------------------------------------------------------------


def spread_of(values: Sequence[float], digits: int = 1) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(record: dict[str, Any], slower: str, faster: str) -> list[float]:
    """Of the turns of each round."""
    turns = record["turns"]
    return [a["seconds"] / b["seconds"] for a, b in zip(turns[slower], turns[faster], strict=True)]


def row(race: Race, record: dict[str, Any]) -> list[str]:
    mine, *others = (side.name for side in race.sides)
    peers = [name for name in others if name != "limit"]
    best = min(peers, key=lambda name: median(turn["seconds"] for turn in record["turns"][name]))
    peak = record["peak_mb"]
    return [
        race.what,
        spread_of([turn["seconds"] for turn in record["turns"][mine]]),
        per_second(record, mine),
        f"{best}: {spread_of([turn['seconds'] for turn in record['turns'][best]])}",
        spread_of(ratios(record, best, mine)) + aim(race.target, "{:g}"),
        f"{peak[mine] / 1024:.1f}, {peak[best] / 1024:.1f}: {peak[mine] / peak[best]:.2f}{aim(race.memory_target, '{:.2f}')}",
        percent_of_limit(record, mine) + aim(race.limit_target, "{:.0%}") if "limit" in others else "",
    ]


def per_second(record: dict[str, Any], mine: str) -> str:
    """What whelp does in a second: tokens or pairs, and the multiplications and additions that this needs at least."""
    turns = record["turns"]
    seconds = median(turn["seconds"] for turn in turns[mine])
    counted = next((name for name in COUNTED if name in turns[mine][-1]), None)
    rates = [f"{turns[mine][-1][counted] / seconds:,.0f} {COUNTED[counted]}"] if counted else []
    if "limit" in turns:
        rates.append(f"{turns['limit'][-1]['multiplied'] / seconds / 1e9:,.0f} GFLOP")
    return ", ".join(rates)


def aim(target: float | None, form: str) -> str:
    return "" if target is None else f", aim {form.format(target)}"


def percent_of_limit(record: dict[str, Any], mine: str) -> str:
    return spread_of([100 * ratio for ratio in ratios(record, "limit", mine)], 0) + " %"


def write_tables() -> None:
    heading = [
        "",
        "whelp, s",
        "a second",
        "the best peer, s",
        "times as fast",
        "peak memory, GB, and its ratio",
        "of the limit",
    ]
    found: dict[str, list[list[str]]] = {}
    for race in RACES:
        for file in sorted((RECORDS / "speed").glob(f"{race.name}-*.json")):
            record = read_json(file)
            if file == record_of(race.name, record["machine"], record["dtype"]):
                found.setdefault(f"{record['machine']}, {record['dtype']}", []).append(row(race, record))
    parts = [f"{name}:\n\n{table(heading, rows)}" for name, rows in found.items()]
    write_between(DOCS, "speed", "\n\n".join(parts) or "No race is recorded.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument("only", nargs="*", help="races: " + ", ".join(race.name for race in RACES))
    options = parser.parse_args()
    if options.command == "tables":
        write_tables()
        return
    if unknown := set(options.only) - {race.name for race in RACES}:
        sys.exit(
            f"there is no race {', '.join(sorted(unknown))}; the races are {', '.join(race.name for race in RACES)}."
        )
    for race in RACES:
        if race.name in options.only or (not options.only and not race.record.exists()):
            write_json_atomic(race.record, run(race))


if __name__ == "__main__":
    main()
