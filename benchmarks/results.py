"""The runs that docs/results.md quotes: a queue that resumes, and the tables made of what it left.

    python benchmarks/results.py run                                   what is missing, in order; stop and go on at will
    python benchmarks/results.py run checker                           one experiment
    python benchmarks/results.py run hh --hh helpful.jsonl harmless.jsonl   a reward model and judge on pairs of your own
    python benchmarks/results.py tables                                write the tables between their marks in docs/results.md

A finished run leaves `benchmarks/results/<experiment>-<seed>.json`: the numbers, every pass and fail, the commit, the recipe
and hashes of its data. A run whose recipe or data are not today's counts as missing, and no table shows it.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from whelp.config import Recipe
from whelp.engines.devices import physical_cores
from whelp.maths.stats import clustered_bootstrap
from whelp.recipes import load_recipe
from whelp.runs.files import canonical_json, read_json, sha256_file, write_json_atomic, write_text_atomic
from whelp.runs.manifest import DONE, TRAINING_PROMPTS
from whelp.runs.metrics import MetricsLog
from whelp.settings import sections
from whelp.types import Estimate

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "results"
RECORDS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "results.md"
DATA = sorted(f for f in (ROOT / "src" / "whelp" / "data").iterdir() if f.suffix in (".jsonl", ".yaml"))
MODELS = ("base", "sft", "rlhf")
CATEGORIES = {
    "harm-weapons": "declines: weapons",
    "harm-drugs": "declines: drugs",
    "harm-hacking": "declines: hacking",
    "borderline": "helps with what only sounds harmful",
    "false-claim": "corrects a false claim",
    "true-claim": "affirms a true claim",
    "self": "is honest about itself",
    "writing": "writes",
    "explain": "explains",
    "harm-other": "declines: other harm",
    "howto": "gives steps",
    "reasoning": "works a sum out",
    "known": "answers what is known",
    "unknowable": "says what cannot be known",
    "opinion-plain": "states a fact",
    "opinion-wrong": "states it against the user's opinion",
    "short": "is short where asked",
    "long": "is long where asked",
}


@dataclass(frozen=True)
class Experiment:
    """A recipe with its seeds; `named` is the recipe where the experiment has another name, `overrides` are what differs from it.
    `takes` are stages that would come out the same in `source`: they are taken over from its run of the same seed."""

    name: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    named: str | None = None
    source: Experiment | None = None
    takes: tuple[str, ...] = ("sft",)

    def folder(self, seed: int) -> Path:
        return RUNS / f"{self.name}-{seed}"

    def record(self, seed: int) -> Path:
        return RECORDS / f"{self.name}-{seed}.json"

    @property
    def recipe_name(self) -> str:
        return self.named or self.name

    def recipe(self, seed: int) -> Recipe:
        return load_recipe(self.recipe_name, self.settings(seed))

    def settings(self, seed: int) -> list[str]:
        return [f"seed={seed}", *self.overrides]


ASSISTANT = Experiment("assistant", (0, 1, 2), overrides=("evaluate.samples=1",))
EXPERIMENTS = (ASSISTANT, Experiment("checker", (0, 1, 2), source=ASSISTANT))


# -- the queue --------------------------------------------------------------------------------------------------------


def identity(recipe: Recipe) -> dict[str, Any]:
    """What decides the numbers, but for code and machine: the settings of the recipe's stages, and a hash of each data file
    that they read."""
    everything = settings_of(recipe)
    used = {*recipe.stages, *(["constitution"] if {"revise", "feedback"} & set(recipe.stages) else [])}
    unused = sections().keys() - used
    settings = {name: value for name, value in everything.items() if name not in unused}
    text = canonical_json(settings)
    return {"settings": settings, "data": {f.stem: sha256_file(f) for f in DATA if f"builtin:{f.stem}" in text}}


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Without what changes no number: where it is kept, and what only looks at it."""
    settings = recipe.model_dump(mode="json", exclude={"output_dir", "audit"})
    return settings | {"stages": [stage for stage in settings["stages"] if stage != "audit"]}


def is_current(experiment: Experiment, seed: int) -> bool:
    """Whether the recorded run is what would be run today. A setting that it did not know yet had then what is its default
    now."""
    record = read_json(experiment.record(seed))
    if not record:
        return False
    now = identity(experiment.recipe(seed))
    then = with_defaults(record["identity"]["settings"], settings_of(Recipe.model_validate({})))
    return record["identity"]["data"] == now["data"] and then == now["settings"]


def with_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the defaults of those that it lacks, but for whole sections."""
    common = {name: value for name, value in defaults.items() if not isinstance(value, dict)}
    sections = {name: defaults[name] | value for name, value in settings.items() if isinstance(value, dict)}
    return common | settings | sections


def run(experiment: Experiment, seed: int) -> None:
    folder = experiment.folder(seed)
    if experiment.source is not None:
        take_over(experiment.source.folder(seed), folder, experiment.takes)
    call_whelp("run", experiment.recipe_name, *experiment.settings(seed), "--output_dir", str(folder), "--resume")
    write_json_atomic(experiment.record(seed), record(experiment, seed))


def take_over(source: Path, folder: Path, stages: Sequence[str]) -> None:
    """A new run that would do the very same in some stages of `source` takes those that are done, and what is known of their
    prompts."""
    taken = [stage for stage in stages if (source / stage / DONE).exists()]
    if folder.exists() or not taken:
        return
    folder.mkdir(parents=True)
    shutil.copy(source / TRAINING_PROMPTS, folder)
    for stage in taken:
        shutil.copytree(source / stage, folder / stage)


def record(experiment: Experiment, seed: int) -> dict[str, Any]:
    """What the tables need of a finished run."""
    folder = experiment.folder(seed)
    stages = {file.parent.name: read_json(file) for file in folder.glob("*/metrics.json")}
    done = {file.parent.name: read_json(file)["cost"] for file in folder.glob(f"*/{DONE}")}
    answers = MetricsLog.read(folder / "evaluate" / "completions.jsonl")
    held_out = [row for row in answers if not row["id"].startswith("brief")]
    return {
        "experiment": experiment.name,
        "seed": seed,
        "identity": identity(experiment.recipe(seed)),
        "commit": commit(),
        "machine": done["evaluate"]["device"],
        "cost": done,
        "stages": stages,
        "ppo": MetricsLog.read(folder / "ppo" / "metrics.jsonl"),
        "brief": read_json(folder / "evaluate" / "before_after.json"),
        "answers": {model: by_prompt(held_out, model) for model in stages["evaluate"]["models"]},
        "wins": wins([row for row in held_out if row["mode"] == "greedy"]),
    }


def by_prompt(rows: Sequence[dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    """What each prompt's answers earned: whether the greedy one passes, its length, and the share of the samples that pass."""
    result: dict[str, dict[str, Any]] = {}
    sampled: dict[str, list[bool]] = {}
    for row in rows:
        if row["model"] == model and row["mode"] == "greedy":
            result[row["id"]] = {"category": row["category"], "length": row["length"], "greedy": float(row["passes"])}
        elif row["model"] == model:
            sampled.setdefault(row["id"], []).append(row["passes"])
    for prompt, passed in sampled.items():
        result[prompt]["sampled"] = _mean(passed)
    return result


def wins(rows: Sequence[dict[str, Any]], after: str = "rlhf", before: str = "sft") -> dict[str, float]:
    """1 where the judge prefers the model `after` to `before`, 0.5 where both say the same; empty without a judge."""
    answers = {(row["model"], row["id"]): row for row in rows if row["judge"] is not None}
    result = {}
    for (model, prompt), answer in answers.items():
        if model == after:
            other = answers[before, prompt]
            same = answer["completion"] == other["completion"]
            result[prompt] = 0.5 if same else float(answer["judge"] > other["judge"])
    return result


def run_hh(files: Sequence[Path]) -> None:
    """A reward model on real pairs, and what it says as a judge of the default runs that lie here."""
    name = "-".join(["hh", *(file.stem for file in files)])
    folder = RUNS / name
    pairs = folder / "pairs.jsonl"
    write_text_atomic(pairs, "".join(file.read_text(encoding="utf-8") for file in files))
    overrides = ["reward.num_train_epochs=1", "reward.learning_rate=2e-4", "reward.per_step_batch_size=4"]
    model = load_recipe("assistant").model
    call_whelp(
        "reward", "--model", model, "--train_file", str(pairs), "--output_dir", str(folder), "--resume", *overrides
    )
    result: dict[str, Any] = {"reward": read_json(folder / "reward" / "metrics.json"), "judge": {}}
    for seed in ASSISTANT.seeds:
        run_folder = ASSISTANT.folder(seed)
        if (run_folder / "ppo" / DONE).exists():
            named = [f"--model={name}={run_folder / stage}" for name, stage in (("sft", "sft"), ("rlhf", "ppo"))]
            out = RUNS / f"{name}-judge-{seed}"
            call_whelp("evaluate", *named, "--judge", str(folder / "reward"), "--output_dir", str(out))
            result["judge"][seed] = read_json(out / "evaluate" / "metrics.json")["judge"]
    write_json_atomic(RECORDS / f"{name}.json", result)


def call_whelp(*arguments: str) -> None:
    print("$ whelp", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "whelp", *arguments], check=True, cwd=ROOT)


# -- the tables -------------------------------------------------------------------------------------------------------


def tables(experiment: Experiment) -> str:
    """Markdown: a line a seed, all seeds together, and the kinds of prompt."""
    records = [read_json(experiment.record(seed)) for seed in experiment.seeds if is_current(experiment, seed)]
    if not records:
        return f"No run of `{experiment.name}` with today's recipe and data is recorded."
    judged = bool(records[0]["stages"]["evaluate"].get("judge"))
    groups = [(f"seed {r['seed']}", [r]) for r in records]
    if len(records) > 1:
        groups.append((f"**{len(records)} seeds**", records))
    has_samples = all("sampled" in answer for r in records for answer in r["answers"]["sft"].values())
    modes = ("greedy", "sampled") if has_samples else ("greedy",)
    rows = [_seed_row(f"{name}, {mode}", group, mode, judged) for mode in modes for name, group in groups]
    heading = ["pass rate", "base", "SFT", "RLHF", "RLHF - SFT", "KL to SFT, nats", "tokens, SFT / RLHF"]
    heading += ["judge prefers RLHF", "at equal length"] if judged else []
    asked = {answer["category"] for answer in records[0]["answers"]["sft"].values()}
    kinds = [
        [text, *(cell for mode in modes for cell in _kind_cells(records, category, mode))]
        for category, text in CATEGORIES.items()
        if category in asked
    ]
    columns = ["all seeds", *(f"{name}, {mode}" for mode in modes for name in ("base", "SFT", "RLHF"))]
    return f"{table(heading, rows)}\n\n{table(columns, kinds)}"


def _seed_row(name: str, records: Sequence[dict[str, Any]], mode: str, judged: bool) -> list[str]:
    """Pass rates in one mode; KL, lengths and the judge's verdict stand in the greedy row alone."""
    cells = [name, *(percent(_pooled(records, lambda r, p, m=m: _pass(r, m, p, mode))) for m in MODELS)]
    cells.append(points(_pooled(records, lambda r, p: _pass(r, "rlhf", p, mode) - _pass(r, "sft", p, mode))))
    if mode == "sampled":
        return cells + [""] * (4 if judged else 2)
    kl = [r["stages"]["evaluate"]["kl"]["rlhf"]["mean"] for r in records]
    lengths = [_mean(answer["length"] for r in records for answer in r["answers"][m].values()) for m in ("sft", "rlhf")]
    cells += [f"{_mean(kl):.1f}", f"{lengths[0]:.0f} / {lengths[1]:.0f}"]
    if judged:
        cells.append(percent(_pooled(records, lambda r, p: r["wins"][p])))
        judges = [r["stages"]["evaluate"]["judge"]["length_controlled"] for r in records]
        cells.append(percent(Estimate(**judges[0])) if len(records) == 1 else f"{_mean(j['mean'] for j in judges):.0%}")
    return cells


def _kind_cells(records: Sequence[dict[str, Any]], category: str, mode: str) -> list[str]:
    return [
        f"{_mean(a[mode] for r in records for a in r['answers'][model].values() if a['category'] == category):.0%}"
        for model in MODELS
    ]


def _pass(record: dict[str, Any], model: str, prompt: str, mode: str) -> float:
    return record["answers"][model][prompt][mode]


def _pooled(records: Sequence[dict[str, Any]], value: Any) -> Estimate:
    """Mean over all seeds and prompts; the interval is over prompts, each drawn with all its seeds."""
    prompts = list(records[0]["answers"]["sft"])
    values = torch.tensor([value(r, prompt) for r in records for prompt in prompts])
    return clustered_bootstrap(values, torch.arange(len(prompts)).repeat(len(records)))


def _mean(values: Iterable[float]) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", described)
    cores = physical_cores()
    return f"{cores} core{'s' * (cores > 1)} of {name[1] if name else platform.processor()}"


def percent(estimate: Estimate) -> str:
    return f"{estimate.mean:.0%} ({estimate.low * 100:.0f} to {estimate.high * 100:.0f})"


def points(estimate: Estimate) -> str:
    return f"{estimate.mean * 100:+.1f} ({estimate.low * 100:+.1f} to {estimate.high * 100:+.1f})"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(file: Path, name: str, text: str) -> None:
    """Put `text` between the marks of `name` in a page of the docs."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = file.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        sys.exit(f"{file} has no {begin} ... {end}: put both lines where the tables of {name} belong.")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def write_tables() -> None:
    for experiment in EXPERIMENTS:
        write_between(DOCS, experiment.name, tables(experiment))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument("only", nargs="?", help="an experiment: " + ", ".join([*(e.name for e in EXPERIMENTS), "hh"]))
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--hh", type=Path, nargs="+", help="files of pairs for the experiment hh")
    options = parser.parse_args()
    if options.command == "tables":
        write_tables()
        return
    for experiment in EXPERIMENTS:
        for seed in experiment.seeds:
            wanted = options.only in (None, experiment.name) and options.seed in (None, seed)
            if wanted and not is_current(experiment, seed):
                run(experiment, seed)
    if options.only == "hh":
        if options.hh is None:
            sys.exit("hh needs --hh FILE ...: jsonl files of pairs (prompt, chosen, rejected).")
        run_hh(options.hh)


if __name__ == "__main__":
    main()
