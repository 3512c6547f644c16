"""Reward against the square root of the KL: PPO, RLOO and best-of-n on the default model and its learned reward.

    python benchmarks/frontier.py run              what is missing, seed by seed; stop it and go on at will
    python benchmarks/frontier.py plot             docs/frontier.svg

PPO is that of the default's recorded runs (`results.py run assistant`), RLOO starts from their SFT and reward models, and
best-of-n picks from the SFT model's answers to prompts that PPO draws from. Scores are gains over the SFT model's answers to the
same prompts (`drift.py`): from batch to batch of PPO the prompts change, and with them the score, by more than is ever gained.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from drift import drift
from results import ASSISTANT, RECORDS, ROOT, RUNS, call_whelp, take_over

from whelp.maths.best_of_n import expected_best, kl_bound
from whelp.maths.shaping import RunningMoments
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.manifest import DONE, Run
from whelp.scorers import scorer, where_trusted
from whelp.stages import ppo
from whelp.stages.context import spread
from whelp.text.chat import sampled
from whelp.workplace import Workplace

RLOO = ("ppo.advantage=rloo", "ppo.num_generations=4")
PROMPTS, ANSWERS = 96, 16
PLOT = ROOT / "docs" / "frontier.svg"
COLOURS = {"PPO": "#1f6feb", "RLOO": "#d9480f", "best-of-n": "#57606a"}

Points = list[tuple[float, float]]
"""(KL in nats, score gained)."""


def record(seed: int) -> Path:
    return RECORDS / f"frontier-{seed}.json"


def run(seed: int) -> None:
    source, folder = ASSISTANT.folder(seed), RUNS / f"rloo-{seed}"
    if not (source / "ppo" / DONE).exists():
        print(f"{source} is not there: python benchmarks/results.py run assistant --seed {seed} makes it")
        return
    take_over(source, folder, ["sft"])
    settings = [f"seed={seed}", "stages=[ppo]", f"ppo.reward_model={source / 'reward'}", f"output_dir={folder}", *RLOO]
    call_whelp("run", "assistant", *settings, "--resume")
    gained = {name: drift(place)["gained"] for name, place in (("PPO", source), ("RLOO", folder))}
    found = {
        "seed": seed,
        "settings": settings[:1] + list(RLOO),
        "gained": gained,
        "best-of-n": best_of_n(seed, settings),
    }
    write_json_atomic(record(seed), found)


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
    best = [float(torch.tensor([expected_best(group, n) for group in groups]).mean()) for n in sizes]
    return [(kl_bound(n), score - best[0]) for n, score in zip(sizes, best, strict=True)]


def plot() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "whelp"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    seeds = [read_json(record(seed)) for seed in ASSISTANT.seeds if record(seed).exists()]
    for i, one in enumerate(seeds):
        labels = {name: name if i == 0 else None for name in COLOURS}
        x, y = zip(*one["best-of-n"], strict=True)
        colour = COLOURS["best-of-n"]
        axes.plot(
            [math.sqrt(kl) for kl in x], y, "o-", color=colour, markersize=3, linewidth=1.2, label=labels["best-of-n"]
        )
        for name, gained in one["gained"].items():
            score, kl = gained["score"], gained["kl"]
            x, y = math.sqrt(max(kl["mean"], 0.0)), score["mean"]
            bars = [[y - score["low"]], [score["high"] - y]]
            axes.errorbar(
                [x], [y], yerr=bars, fmt="s", color=COLOURS[name], markersize=4, capsize=2, label=labels[name]
            )
    axes.set_xlabel("square root of the KL to the SFT model, nats")
    axes.axhline(0, color="#d0d7de", linewidth=0.8, zorder=0)
    axes.set_ylabel("score gained over the SFT model")
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
