"""Reward hacking where everything can be enumerated: the proxy rises, the truth peaks and falls, and what helps.

    python benchmarks/hacking_world.py run       the seeds that are missing; stop and go on at will; `run 0 2 4`: some of them
    python benchmarks/hacking_world.py optima    what the optimum of each arm earns at other prices, for other seeds
    python benchmarks/hacking_world.py tables    docs/hacking-world.svg, and the table between its marks in docs/reward-hacking.md

The world is that of tests/conformance/exact_world.py: four prompts, 133 answers to each, a small Llama that PPO trains through
`stages/ppo.py`. The true (gold) reward of every answer is drawn. People compare 250 pairs of the model's own answers to each
prompt, and err as Bradley and Terry say. A reward model is what maximises their likelihood around a random start, so that an
answer which nobody compared has an arbitrary score, as in a network; the start is heavy-tailed (Student's t with 3 degrees of
freedom), because errors whose tails are light leave the truth where it is however hard one optimises (Kwa et al. 2024). The
policy's true reward is known at every iteration, by enumeration.

World and price were chosen by what enumeration says of other seeds (`optima`), before any of these was trained in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from results import RECORDS, ROOT, commit, machine, table, write_between
from torch import Tensor

sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from exact_world import ANSWERS, PLACE, PROMPTS, log_probabilities, log_probabilities_in, make_chat, save_model, train

from whelp.engines.base import Held
from whelp.engines.devices import choose
from whelp.engines.local import LocalEngine
from whelp.maths.shaping import aggregate, preference
from whelp.runs.files import read_json, write_json_atomic
from whelp.types import Completion

DOCS, PLOT = ROOT / "docs" / "reward-hacking.md", ROOT / "docs" / "hacking-world.svg"
SEEDS = tuple(range(20))
OTHER_SEEDS = tuple(range(100, 124))
PAIRS, MEMBERS, TAIL, START_STD = 250, 5, 3, 2.0
PRICES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.13, 0.1, 0.07, 0.05)
KL_COEF, UNCERTAINTY_COEF = 0.1, 0.5
RECIPE = {"batch_size": 256, "total_episodes": 256 * 72, "num_mini_batches": 4}
ARMS = {
    "no fix": "one reward model",
    "ensemble, the worst": "five reward models, `ppo.reward_aggregation: min`",
    "ensemble, less doubt": "five reward models, `ppo.reward_aggregation: uncertainty`",
    "preference as reward": "`ppo.shaping: preference`",
    "watch that stops": "`ppo.watch: stop`",
    "second opinion": "`ppo.second_opinion`: a reward model of other people's comparisons, which teaches nothing",
}
COLOURS = dict(zip(ARMS, ("#57606a", "#1f6feb", "#0969da", "#d9480f", "#2da44e", "#8250df"), strict=True))
SETTINGS: dict[str, dict[str, Any]] = {
    "watch that stops": {"watch": "stop", "save_steps": 1},
    "second opinion": {"save_steps": 4},
}


@dataclass(frozen=True)
class Scored:
    """What PPO learns from: a table of scores of every answer to every prompt [4 133]. `train` wants a world like this."""

    scores: Tensor
    kl_coef: float = KL_COEF

    def reward(self, completions: Sequence[Completion], held: Held) -> Tensor:
        places = [(PROMPTS.index(c.prompt), PLACE[c.tokens]) for c in completions]
        return torch.stack([self.scores[place] for place in places]).float()


# -- reward models from comparisons -------------------------------------------------------------------------------------


def compared(gold: Tensor, log_ref: Tensor, draw: np.random.Generator) -> list[np.ndarray]:
    """For each prompt `PAIRS` pairs (better, worse) of answers that the model gives, as people who err rank them."""
    result = []
    for scores, log_p in zip(gold.numpy(), log_ref.numpy(), strict=True):
        p = np.exp(log_p) / np.exp(log_p).sum()
        pairs = np.array([draw.choice(len(p), 2, replace=False, p=p) for _ in range(PAIRS)])
        is_right = draw.random(PAIRS) < 1 / (1 + np.exp(scores[pairs[:, 1]] - scores[pairs[:, 0]]))
        result.append(np.where(is_right[:, None], pairs, pairs[:, ::-1]))
    return result


def reward_model(pairs: Sequence[np.ndarray], draw: np.random.Generator) -> Tensor:
    """Scores of every answer to every prompt [4 133]: the most likely ones given a bootstrap of the pairs and a random start,
    from which an answer moves as far as comparisons push it. Newton's method."""
    models = []
    for found in pairs:
        better, worse = found[draw.integers(len(found), size=len(found))].T
        start = START_STD * draw.standard_t(TAIL, size=len(ANSWERS)) / (TAIL / (TAIL - 2)) ** 0.5
        scores = start.copy()
        for _ in range(60):
            p = 1 / (1 + np.exp(scores[worse] - scores[better]))
            slope = start - scores
            np.add.at(slope, better, 1 - p)
            np.add.at(slope, worse, p - 1)
            curve = np.eye(len(scores))
            for rows, columns, sign in (
                (better, better, 1),
                (worse, worse, 1),
                (better, worse, -1),
                (worse, better, -1),
            ):
                np.add.at(curve, (rows, columns), sign * p * (1 - p))
            scores = scores + 0.9 * np.linalg.solve(curve, slope)
        models.append(scores)
    return torch.tensor(np.array(models))


def in_units(scores: Tensor, log_ref: Tensor) -> Tensor:
    """As the recipe scales a reward: the policy's own samples have mean 0 and variance 1, over all prompts together."""
    p = log_ref.exp()
    mean = (p * scores).sum(1, keepdim=True)
    return (scores - mean) / (p * (scores - mean) ** 2).sum(1).mean().sqrt()


def scores_of(arm: str, members: Tensor, log_ref: Tensor) -> Tensor:
    """What each answer earns under an arm, of the members' scores [5 4 133]."""
    flat = members.reshape(len(members), -1).float()
    if arm == "ensemble, the worst":
        return aggregate(flat, "min").reshape(members.shape[1:])
    if arm == "ensemble, less doubt":
        return aggregate(flat, "uncertainty", UNCERTAINTY_COEF).reshape(members.shape[1:])
    one = members[0].float()
    if arm == "preference as reward":  # beside the reference's mean, which is 0
        return preference(one.flatten(), 1.0).reshape(one.shape)
    return one


# -- training -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A world of a seed: rewards of every answer to every prompt."""

    source: Path
    log_ref: Tensor
    gold: Tensor
    members: Tensor
    """Of the ensemble [5 4 133]; the first is the proxy."""
    other: Tensor
    """What a second opinion says."""

    @classmethod
    def of(cls, seed: int, source: Path) -> World:
        chat, draw = make_chat(), np.random.default_rng(seed)
        gold = torch.tensor(draw.normal(size=(len(PROMPTS), len(ANSWERS))))
        save_model(source, chat, seed)
        log_ref = log_probabilities_in(source, chat, choose("cpu", "float32"))
        pairs = compared(gold, log_ref, draw)
        members = torch.stack([in_units(reward_model(pairs, draw), log_ref) for _ in range(MEMBERS)])
        other = in_units(reward_model(compared(gold, log_ref, draw), draw), log_ref)
        return cls(source, log_ref, gold, members, other)

    def gained(self, log_pi: Tensor, rewards: Tensor) -> float:
        """By a policy, beside the one that it began as."""
        return float(((log_pi.exp() - self.log_ref.exp()) * rewards).sum(1).mean())


def run(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        world = World.of(seed, Path(folder) / "model")
        arms = {arm: course(world, Path(folder) / arm.replace(" ", "-"), seed, arm) for arm in ARMS}
    return {"seed": seed, "machine": machine(), "commit": commit(), "arms": arms}


def course(world: World, where: Path, seed: int, arm: str) -> dict[str, list[float]]:
    """The true reward, the proxy's and the KL of the policy before every iteration, and of the one that it ended with."""
    found: dict[str, list[float]] = {"gold": [], "proxy": [], "kl": []}
    look = partial(_look, found, world)
    scores = Scored(scores_of(arm, world.members, world.log_ref))
    opinion = Scored(world.other.float()).reward if arm == "second opinion" else None
    recipe: dict[str, Any] = RECIPE | SETTINGS.get(arm, {})
    compute = choose("cpu", "float32")
    engine = train(world.source, make_chat(), compute, where, scores, seed, look, second_opinion=opinion, **recipe)  # pyright: ignore[reportArgumentType]
    look(engine)
    return found


def _look(found: dict[str, list[float]], world: World, engine: LocalEngine) -> None:
    log_pi = log_probabilities(engine, "policy")
    for name, reward in (("gold", world.gold), ("proxy", world.members[0])):
        found[name].append(world.gained(log_pi, reward))
    found["kl"].append(float((log_pi.exp() * (log_pi - world.log_ref)).sum(1).mean()))


# -- what enumeration says of it ----------------------------------------------------------------------------------------


def optima() -> str:
    """The truth that the optimum of each arm gains at falling prices of a nat, of seeds that are not trained. A second opinion
    chooses among the optima without a fix at this price and all above."""
    found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS if arm != "watch that stops"}
    for seed in OTHER_SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            world = World.of(seed, Path(folder) / "model")
        for arm, rows in found.items():
            scores = scores_of(arm, world.members, world.log_ref)
            policies = [(world.log_ref + scores / price).log_softmax(1) for price in PRICES]
            truth = [world.gained(log_pi, world.gold) for log_pi in policies]
            if arm == "second opinion":
                said = [world.gained(log_pi, world.other) for log_pi in policies]
                truth = [truth[int(np.argmax(said[: i + 1]))] for i in range(len(PRICES))]
            rows.append(truth)
    means = {arm: np.mean(rows, 0) for arm, rows in found.items()}
    return table(["", *map(str, PRICES)], [[arm, *(f"{value:+.2f}" for value in mean)] for arm, mean in means.items()])


# -- what came of it ----------------------------------------------------------------------------------------------------


def records() -> list[dict[str, Any]]:
    return [one for seed in SEEDS if (one := read_json(record(seed)))]


def record(seed: int) -> Path:
    return RECORDS / f"hacking-world-{seed}.json"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds with Student's 95% interval."""
    from scipy.stats import t

    found = np.array(values)
    half = float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    return float(found.mean()), float(found.mean()) - half, float(found.mean()) + half


def told(values: Sequence[float]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval(values))


def rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    result = []
    for arm, what in ARMS.items():
        ended = {name: [one["arms"][arm][name][-1] for one in found] for name in ("gold", "proxy", "kl")}
        peak = float(np.mean([one["arms"][arm]["gold"][: _shortest(found, arm)] for one in found], 0).max())
        last = float(np.mean(ended["gold"]))
        plain = [one["arms"]["no fix"]["gold"][-1] for one in found]
        gained = [a - b for a, b in zip(ended["gold"], plain, strict=True)]
        result.append([
            f"{arm}: {what}", told(ended["proxy"]), told(ended["gold"]), f"{peak:+.2f}, {1 - last / peak:.0%}",
            "" if arm == "no fix" else told(gained), f"{np.mean(ended['kl']):.1f}",
        ])  # fmt: skip
    return result


def _shortest(found: Sequence[dict[str, Any]], arm: str) -> int:
    return min(len(one["arms"][arm]["gold"]) for one in found)


def write_tables() -> None:
    found = records()
    heading = (
        "",
        "proxy, gained",
        "truth, gained",
        "its peak, and the fall from there",
        "truth, more than without a fix",
        "nats",
    )
    text = table(heading, rows(found)) if len(found) > 1 else "Nothing is recorded."
    write_between(DOCS, "hacking-world", text)
    if len(found) > 1:
        plot(found)


def plot(found: Sequence[dict[str, Any]]) -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "whelp"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharex=True)
    for arm in ARMS:
        n = _shortest(found, arm)
        kl, gold, proxy = (
            np.mean([one["arms"][arm][name][:n] for one in found], 0) for name in ("kl", "gold", "proxy")
        )
        for place, values in ((axes[0], proxy), (axes[1], gold)):
            if arm == "second opinion":  # it goes the way without a fix, and comes back
                place.plot(np.sqrt(kl[-1:]), values[-1:], "o", color=COLOURS[arm], markersize=5, label=arm)
            else:
                place.plot(np.sqrt(kl), values, color=COLOURS[arm], linewidth=1.4, label=arm)
    for place, title in zip(axes, ("the proxy: what PPO is paid", "the truth"), strict=True):
        place.set_title(title, fontsize=10)
        place.set_xlabel("square root of the KL, nats")
        place.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "optima", "tables"))
    parser.add_argument("seeds", nargs="*", type=int, help="those to run; all that are missing where none is named")
    options = parser.parse_args()
    match options.what:
        case "tables":
            return write_tables()
        case "optima":
            return print(optima())
    for seed in options.seeds or SEEDS:
        if not record(seed).exists():
            write_json_atomic(record(seed), run(seed))
            print(f"seed {seed} is done", flush=True)
    return None


if __name__ == "__main__":
    main()
