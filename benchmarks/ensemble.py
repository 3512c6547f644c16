"""What an ensemble of reward models costs, and whether its doubt tells text of another domain from answers.

    python benchmarks/ensemble.py cost                      five members of four layers against one: training and scoring
    python benchmarks/ensemble.py doubt runs/x/reward       the variance over the members of a trained ensemble

`cost` times the same rankings with one and with five members, each in turn, and takes the best of several rounds. `doubt` sets
the variance of the members' scores on held-out answers against that on text of the same length from Python's own manual, which
every Python brings along: the area under the ROC curve is how often the strange text has the larger variance.

    whelp reward --model runs/assistant/sft --output_dir runs/ensemble trainable_layers=4 reward.members=5
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import mannwhitneyu

from whelp.config import Recipe
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.local import LocalEngine
from whelp.maths.preference import BradleyTerry
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.manifest import Run
from whelp.scorers import members_in, reward_engine
from whelp.stages.comparisons import prompts_of, render, rows_by_ranking
from whelp.stages.reward import bootstraps, terms_of
from whelp.text.chat import sequences
from whelp.types import Ranking
from whelp.workplace import Workplace

RANKINGS, BATCH, ROUNDS, SHOWN = 32, 8, 3, 200
NAME = "reward"


def workplace() -> Workplace:
    return Workplace(load_recipe("assistant", []), Run(Path(tempfile.mkdtemp())), PlainProgress())


def train(engine: LocalEngine, held: Held, rankings: Sequence[Ranking], members: int) -> None:
    """One epoch, as the stage does it."""
    rows_of, drawn = rows_by_ranking(rankings), bootstraps(prompts_of(rankings), members, seed=0)
    for start in range(0, len(rankings), BATCH):
        chosen = range(start, min(start + BATCH, len(rankings)))
        engine.update(terms_of(held, rankings, rows_of, chosen, drawn, BradleyTerry()), {NAME: 1e-4})


def seconds(place: Workplace, rankings: Sequence[Ranking], members: int) -> tuple[float, float]:
    """(an epoch of training, scoring), the trunk's pass included in both."""
    engine = place.engine(place.base, place.recipe.reward.max_length)
    spec = ModelSpec(
        source=place.base,
        head="scalar",
        trainable_layers=4,
        members=members,
        fresh_head=True,
        optimizer=OptimizerSpec(),
    )
    engine.add(NAME, spec)
    data = render(engine.chat, rankings)[0]
    began = time.perf_counter()
    with engine.hold(data) as held:
        train(engine, held, rankings, members)
    trained = time.perf_counter()
    with engine.hold(data) as held:
        engine.rewards(NAME, held)
    return trained - began, time.perf_counter() - trained


def cost() -> None:
    place = workplace()
    rankings = place.rankings.train[:RANKINGS]
    best: dict[int, tuple[float, ...]] = {}
    for _ in range(ROUNDS):
        for members in (1, 5):
            found = seconds(place, rankings, members)
            best[members] = tuple(map(min, best.get(members, found), found))
            print(f"{members} members: training {found[0]:.1f} s, scoring {found[1]:.1f} s", flush=True)
    for what, place_in in (("training", 0), ("scoring", 1)):
        print(f"{what}: five members take {best[5][place_in] / best[1][place_in]:.2f} times what one takes")


def doubt(folder: Path) -> None:
    run = Run(folder.resolve().parent)
    place = Workplace(Recipe.model_validate(run.manifest()["recipe"]), run, PlainProgress())
    engine = reward_engine(place, folder)
    shift = torch.tensor(engine.models[NAME].source.config.reward_member_shifts)
    known = [(ranking, ranking.completions[0]) for ranking in place.rankings.held_out[:SHOWN]]
    strange = length_matched(manual(), [len(text.split()) for _, text in known])
    texts = [(ranking.prompt, text) for ranking, text in known]
    texts += [(ranking.prompt, text) for (ranking, _), text in zip(known, strange, strict=True)]
    with engine.hold(sequences([engine.chat.answer(prompt, text) for prompt, text in texts])) as held:
        variance = (engine.rewards(NAME, held) - shift[:, None]).var(0)
    inside, outside = variance[: len(known)].tolist(), variance[len(known) :].tolist()
    area = mannwhitneyu(outside, inside).statistic / (len(inside) * len(outside))
    print(
        f"mean variance of held-out answers {sum(inside) / len(inside):.3f}, of the manual {sum(outside) / len(outside):.3f}"
    )
    print(f"area under the ROC curve: {area:.3f} ({len(inside)} answers, {len(outside)} texts)")


def manual() -> list[str]:
    """Words of the running text in Python's manual."""
    from pydoc_data.topics import topics

    paragraphs = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
    prose = [p for p in paragraphs if len(p.split()) > 12 and re.fullmatch(r"[A-Z][\w ,.;:'()\"*`/\-]+[.:]", p)]
    return re.sub(r'["*`]', "", " ".join(prose)).split()


def length_matched(words: Sequence[str], lengths: Sequence[int]) -> list[str]:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "doubt"])
    parser.add_argument("reward", type=Path, nargs="?", help="doubt: the folder of an ensemble")
    options = parser.parse_args()
    if options.what == "cost":
        cost()
    elif options.reward is None or members_in(options.reward) < 2:
        parser.error("doubt needs the folder of an ensemble; see above for the command that trains one.")
    else:
        doubt(options.reward)


if __name__ == "__main__":
    main()
