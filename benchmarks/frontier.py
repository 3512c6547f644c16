"""Reward against the square root of the KL: PPO, RLOO and best-of-n on the default model and its learned reward.

    python benchmarks/frontier.py run              what is missing, seed by seed; stop it and go on at will
    python benchmarks/frontier.py plot             docs/frontier.svg

PPO's path is that of the default's recorded runs (`results.py run assistant`), RLOO starts from their SFT and reward models, and
best-of-n picks from the SFT model's answers to the prompts that PPO trains on. Each point of a path is one batch of fresh
answers, scored as PPO scores them.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import torch
from results import EXPERIMENTS, RECORDS, ROOT, RUNS, Experiment, call_whelp

from whelp.maths.best_of_n import expected_best, kl_bound
from whelp.maths.shaping import RunningMoments
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.manifest import DONE, TRAINING_PROMPTS, Run
from whelp.runs.metrics import MetricsLog
from whelp.scorers import scorer, where_trusted
from whelp.stages import ppo
from whelp.stages.context import spread
from whelp.text.chat import sampled
from whelp.workplace import Workplace

ASSISTANT: Experiment = EXPERIMENTS[0]
RLOO = ("ppo.advantage=rloo", "ppo.num_generations=4")
PROMPTS, ANSWERS = 96, 16
PLOT = ROOT / "docs" / "frontier.svg"
COLOURS = {"PPO": "#1f6feb", "RLOO": "#d9480f", "best-of-n": "#57606a"}

Points = list[tuple[float, float]]
"""(KL in nats, mean score)."""


def record(seed: int) -> Path:
    return RECORDS / f"frontier-{seed}.json"


def run(seed: int) -> None:
    source, folder = ASSISTANT.folder(seed), RUNS / f"rloo-{seed}"
    if not (source / "ppo" / DONE).exists():
        print(f"{source} is not there: python benchmarks/results.py run assistant --seed {seed} makes it")
        return
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copytree(source / "sft", folder / "sft")
        shutil.copy(source / TRAINING_PROMPTS, folder)
    settings = [f"seed={seed}", "stages=[ppo]", f"ppo.reward_model={source / 'reward'}", f"output_dir={folder}", *RLOO]
    call_whelp("run", "assistant", *settings, "--resume")
    paths = {"PPO": path(source), "RLOO": path(folder), "best-of-n": best_of_n(seed, settings)}
    write_json_atomic(record(seed), {"seed": seed, "settings": settings[:1] + list(RLOO), "paths": paths})


def path(folder: Path) -> Points:
    lines = MetricsLog.read(folder / "ppo" / "metrics.jsonl")
    return [(line["objective/kl"], line["objective/scores"]) for line in lines]


def best_of_n(seed: int, settings: list[str]) -> Points:
    """The KL is its bound, so that best-of-n may cost less than it is shown to."""
    recipe = load_recipe("assistant", settings)
    place = Workplace(recipe, Run(Path(recipe.output_dir)), PlainProgress())
    engine = place.engine(place.policy, temperature=recipe.ppo.temperature)
    engine.add("policy", place.spec(place.policy))
    engine.add("reference", place.spec(None, copy_of="policy"))
    reward = scorer(place, engine)
    prompts = spread(where_trusted(place, place.prompts.records), PROMPTS, lambda prompt: prompt.category)
    completions = ppo.sample(engine, prompts, ANSWERS, recipe.ppo, ("best-of-n", seed))
    with engine.hold(sampled(engine.chat, completions)) as held:
        scores = ppo.score(engine, completions, held, reward, recipe.ppo, RunningMoments()).scores
    groups = scores.reshape(len(prompts), ANSWERS)
    sizes = [2**k for k in range(int(math.log2(ANSWERS)) + 1)]
    return [(kl_bound(n), float(torch.tensor([expected_best(group, n) for group in groups]).mean())) for n in sizes]


def plot() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "whelp"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    seeds = [read_json(record(seed)) for seed in ASSISTANT.seeds if record(seed).exists()]
    for name, colour in COLOURS.items():
        for i, one in enumerate(seeds):
            x = [math.sqrt(max(kl, 0.0)) for kl, _ in one["paths"][name]]
            y = [score for _, score in one["paths"][name]]
            style = {"marker": "o", "markersize": 3} if name == "best-of-n" else {}
            axes.plot(x, y, color=colour, linewidth=1.2, label=name if i == 0 else None, **style)
    axes.set_xlabel("square root of the KL to the SFT model, nats")
    axes.set_ylabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plot"])
    parser.add_argument("--seed", type=int, help="one seed")
    options = parser.parse_args()
    if options.command == "plot":
        plot()
        return
    for seed in ASSISTANT.seeds:
        if options.seed in (None, seed) and not record(seed).exists():
            run(seed)


if __name__ == "__main__":
    main()
