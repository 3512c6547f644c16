"""How right a reward model is on real human pairs: grouped cross-validation, a trial at a time, from activations kept on disk.

    python benchmarks/human_pairs.py run helpful.jsonl harmless.jsonl    what is missing, in order; stop and go on at will
    python benchmarks/human_pairs.py tables                              write the tables between their marks in docs/results.md

Pairs are dealt into five folds by a hash of what is said first, whatever file they stand in, so that no conversation and no
part of one is on both sides. The trunk is frozen: what it makes of a pair is written to `runs/human/` the first time and read
from there by every trial and fold after it. A finished fold leaves `benchmarks/results/human/<trial>-<set>-<fold>.json`:
the margins of the model and of the surface baseline, and no text.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from results import DOCS, ROOT, commit, machine, percent, points, table, write_between
from scipy.stats import binomtest
from torch import Tensor

from whelp.engines.base import Metrics, Term
from whelp.engines.local import LocalEngine, LocalHeld
from whelp.maths.stats import clustered_bootstrap, clusters_of
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.manifest import Run
from whelp.stages import reward, sft
from whelp.stages.comparisons import right, strict_pairs
from whelp.stages.context import Stage
from whelp.stages.trust import answer_scores, compare
from whelp.text.formats import read_rankings
from whelp.training import optimizer
from whelp.types import Ranking, Sequences
from whelp.workplace import Workplace

FOLDS = 5
SETS = {
    "helpful": ("helpful_train",),
    "harmless": ("harmless_train",),
    "hh": ("helpful_train", "harmless_train"),
    "human": ("human_train",),
}
"""Files by name (their stems). The last holds every pair of the others, so that there is no set of all three."""
SHARED = (
    "reward.num_train_epochs=1",
    "reward.learning_rate=2e-4",
    "reward.per_step_batch_size=4",
    "trainable_layers=4",
)
RECORDS = ROOT / "benchmarks" / "results" / "human"
RUNS = ROOT / "runs" / "human"


@dataclass(frozen=True)
class Trial:
    """One way to train, and the folds on which it is tried."""

    name: str
    what: str
    overrides: tuple[str, ...] = ()
    sets: tuple[str, ...] = ("helpful",)
    folds: tuple[int, ...] = (0, 1)
    model: Path | None = None
    """None: the recipe's model."""
    lm_coef: float = 0.0
    """Weight of the loss of the chosen answers as a language model's, on the same branch."""

    def record(self, of: str, fold: int) -> Path:
        return RECORDS / f"{self.name}-{of}-{fold}.json"

    @property
    def queue(self) -> list[tuple[str, int]]:
        return [(of, fold) for of in self.sets for fold in self.folds]


TRIALS = (
    Trial("shared", "four layers, one epoch, 2e-4, four pairs a step"),
    Trial("lr-1e-4", "half the learning rate", ("reward.learning_rate=1e-4",)),
    Trial("two-epochs", "two epochs", ("reward.num_train_epochs=2",)),
    Trial("batch-16", "sixteen pairs a step", ("reward.per_step_batch_size=16",)),
    Trial("cut-256", "no more than the last 256 tokens", ("reward.max_length=256",)),
    Trial("layers-8", "eight layers", ("trainable_layers=8",)),
    Trial("layers-8-two", "eight layers, two epochs", ("trainable_layers=8", "reward.num_train_epochs=2")),
    Trial(
        "default",
        "eight layers, 3e-4, eight pairs a step: the recipe's own",
        ("trainable_layers=8", "reward.learning_rate=3e-4", "reward.per_step_batch_size=8"),
    ),
    Trial("sft", "from the SFT model", model=ROOT / "runs" / "results" / "assistant-0" / "sft"),
    Trial("lm", "and the chosen answers as a language model's, weight 0.1", lm_coef=0.1),
    Trial("full", "all layers, 5e-5", ("trainable_layers=all", "reward.learning_rate=5e-5")),
    Trial("shared", "four layers, one epoch, 2e-4, four pairs a step", (), tuple(SETS), tuple(range(FOLDS))),
)
"""In the order in which they are run: first each change alone, then the whole cross-validation."""


# -- activations on disk ----------------------------------------------------------------------------------------------


class Store:
    """What a trunk made of token sequences, in half precision: appended to a file, found again by a hash of the tokens."""

    def __init__(self, folder: Path, width: int, dtype: torch.dtype = torch.float32):
        """`dtype`: what `get` gives, in which the branch computes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.width, self.dtype = width, dtype
        self.activations = folder / "activations.f16"
        self.index = folder / "index"
        self.index.touch()
        lines = self.index.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # killed while it was written
            lines.pop()
            self.index.write_text("".join(lines))
        self.places = {name: int(place) for name, place in (line.split() for line in lines)}

    def get(self, tokens: Sequence[int]) -> Tensor:
        with self.activations.open("rb") as file:
            file.seek(self.places[name_of(tokens)])
            data = bytearray(file.read(2 * self.width * len(tokens)))
        return torch.frombuffer(data, dtype=torch.float16).view(len(tokens), self.width).to(self.dtype)

    def put(self, tokens: Sequence[int], hidden: Tensor) -> None:
        """The index is written behind the activations: what has no whole line there is made again."""
        with self.activations.open("ab") as file:
            place = file.tell()
            file.write(hidden.half().contiguous().numpy().tobytes())
        with self.index.open("a") as file:
            file.write(f"{name_of(tokens)} {place}\n")
        self.places[name_of(tokens)] = place


def name_of(tokens: Sequence[int]) -> str:
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()[:32]


class Rows(dict[int, Tensor]):
    """The trunk's outputs of some sequences by row, as `LocalHeld` keeps them, but on disk."""

    def __init__(self, store: Store, sequences: Sequences):
        super().__init__()
        self.store = store
        self.sequences = sequences

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and name_of(self.sequences.tokens[row]) in self.store.places

    def __getitem__(self, row: int) -> Tensor:
        return self.store.get(self.sequences.tokens[row])

    def __setitem__(self, row: int, hidden: Tensor) -> None:
        self.store.put(self.sequences.tokens[row], hidden)


class DiskEngine(LocalEngine):
    """The local engine, with the outputs of its trunks on disk from one run to the next. With `lm_coef` its model "policy" learns
    the chosen answers beside every update."""

    lm_coef = 0.0

    @contextmanager
    def hold(self, sequences: Sequences) -> Iterator[LocalHeld]:
        with super().hold(sequences) as held:
            for key, trunk in self.trunks.items():
                if (
                    trunk.decoder is not None and self.compute.device.type == "cpu"
                ):  # others make them faster than a disk
                    held.cache[key] = Rows(Store(RUNS / key, trunk.hidden_size, self.compute.dtype), sequences)
            yield held

    def update(self, terms: Sequence[Term], lr: Mapping[str, float]) -> Metrics:
        if not self.lm_coef:
            return super().update(terms, lr)
        (term,) = terms
        chosen = term.held.select(range(0, len(term.held.sequences), 2))
        both = super().update([term, sft.term(chosen, self.lm_coef)], {**lr, "policy": lr[term.model]})
        return {name: value for name, value in both.items() if name.startswith(term.model)}


# -- the queue --------------------------------------------------------------------------------------------------------


def pairs_of(files: Sequence[Path]) -> dict[str, list[Ranking]]:
    """The pairs of each file, by its stem, which becomes their source."""
    return {file.stem: [replace(r, source=file.stem) for r in read_rankings(file).records] for file in files}


def united(pairs: dict[str, list[Ranking]], stems: Sequence[str]) -> list[Ranking]:
    """The pairs of several files; one that stands in two of them counts in the first."""
    found: dict[tuple[str, tuple[str, ...]], Ranking] = {}
    for stem in stems:
        for ranking in pairs[stem]:
            found.setdefault((ranking.prompt.id, ranking.completions), ranking)
    return list(found.values())


def said_first(ranking: Ranking) -> str:
    """What all pairs that began in the same words share."""
    first = next(message.content for message in ranking.prompt.messages if message.role == "user")
    return hashlib.sha256(" ".join(first.casefold().split()).encode()).hexdigest()[:12]


def fold_of(ranking: Ranking) -> int:
    return int(said_first(ranking), 16) % FOLDS


def run(trial: Trial, of: str, fold: int, pairs: Sequence[Ranking]) -> dict[str, Any]:
    """Train on the other folds and compare on this one."""
    train = [ranking for ranking in pairs if fold_of(ranking) != fold]
    held_out = [ranking for ranking in pairs if fold_of(ranking) == fold]
    recipe = load_recipe("assistant", [*SHARED, *trial.overrides])
    folder = RUNS / f"{trial.name}-{of}-{fold}"
    place = Workplace(recipe, Run(folder), PlainProgress())
    source = trial.model or place.base
    engine = DiskEngine(place.chat(source, recipe.reward.max_length), place.compute)
    began = time.perf_counter()
    learns = {"optimizer": optimizer(recipe.reward)}
    if trial.lm_coef:
        engine.lm_coef = trial.lm_coef
        engine.add("policy", place.spec(source, **learns))
        engine.add("reward", place.spec(None, copy_of="policy", shares_branch=True, head="scalar", **learns))
    else:
        engine.add("reward", place.spec(source, head="scalar", fresh_head=True, **learns))
    stage = Stage(folder / "reward", place.progress, recipe.seed)
    trained = reward.train(engine, engine.chat, train, [], recipe.reward, stage)
    seconds = time.perf_counter() - began
    found = compare(answer_scores(engine, engine.chat, held_out), train, held_out)
    return {
        "what": trial.what,
        "seed": recipe.seed,
        "machine": machine(),
        "commit": commit(),
        "steps": trained["steps"],
        "seconds": seconds,
        "first": [said_first(held_out[g]) for g in strict_pairs(held_out)[2]],
        "source": found.source,
        "margin": rounded(found.margin),
        "surface": rounded(found.surface_margin),
        "length": rounded(found.length_margin),
    }


def rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def run_queue(files: Sequence[Path], only: str | None) -> None:
    pairs = pairs_of(files)
    for trial in TRIALS:
        for of, fold in trial.queue:
            missing = set(SETS[of]) - pairs.keys()
            if only in (None, trial.name) and not trial.record(of, fold).exists() and not missing:
                print(f"{trial.name} ({trial.what}): {of}, fold {fold}", flush=True)
                write_json_atomic(trial.record(of, fold), run(trial, of, fold, united(pairs, SETS[of])))


# -- the tables -------------------------------------------------------------------------------------------------------


def row(trial: Trial, of: str, folds: Sequence[int]) -> list[str]:
    """Accuracy over the folds, beside length and surface, with McNemar's test of model against surface."""
    records = [read_json(trial.record(of, fold)) for fold in folds]
    first = [name for record in records for name in record["first"]]
    cluster = clusters_of(first)
    model, surface, length = (
        right(torch.tensor([value for record in records for value in record[key]]))
        for key in ("margin", "surface", "length")
    )
    gained, lost = int(((model == 1) & (surface < 1)).sum()), int(((model < 1) & (surface == 1)).sum())
    return [
        f"{len(first)}",
        *(percent(clustered_bootstrap(each, cluster)) for each in (model, surface, length)),
        points(clustered_bootstrap(model - surface, cluster)),
        f"{gained} : {lost}, p = {binomtest(gained, gained + lost).pvalue:.2g}",
        f"{sum(record['seconds'] for record in records) / len(records) / 60:.0f} min",
    ]


def write_tables() -> None:
    columns = ["held-out pairs", "model", "surface", "length", "model - surface", "McNemar", "time a fold"]
    tried = {t.name: t for t in TRIALS if t.sets == ("helpful",)}.values()
    rows = [[t.what, *row(t, "helpful", t.folds)] for t in tried if all(t.record(*q).exists() for q in t.queue)]
    whole = TRIALS[-1]
    done = [of for of in whole.sets if all(whole.record(of, fold).exists() for fold in whole.folds)]
    parts = [("helpful, two of the folds", rows), ("five folds", [[of, *row(whole, of, whole.folds)] for of in done])]
    text = "\n\n".join(table([name, *columns], found) for name, found in parts if found) or "No trial is recorded."
    write_between(DOCS, "human", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        help="pairs in jsonl files named " + ", ".join(sorted({stem for stems in SETS.values() for stem in stems})),
    )
    parser.add_argument("--only", help="one trial: " + ", ".join(dict.fromkeys(t.name for t in TRIALS)))
    options = parser.parse_args()
    if options.command == "tables":
        write_tables()
    elif not options.files:
        sys.exit("run needs files of pairs (prompt, chosen, rejected).")
    else:
        run_queue(options.files, options.only)


if __name__ == "__main__":
    main()
