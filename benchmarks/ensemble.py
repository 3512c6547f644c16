"""What an ensemble of reward models costs, and whether its doubt tells text of another domain from answers.

    python benchmarks/ensemble.py cost                      five members of four layers against one: training and scoring
    python benchmarks/ensemble.py doubt runs/x/reward       what a trained ensemble doubts

`cost` times the same rankings with one and with five members, each in turn, and takes the best of several rounds; it leaves
`benchmarks/results/ensemble-cost.json`. `doubt` sets the variance of the score on held-out answers against that on sentences from
Python's own manual, as many words of them, which every Python brings along: the area under the ROC curve is how often the strange
text is doubted more, and so it is for the variance over the members alone, and within each alone. It leaves
`benchmarks/results/doubt-<seed>.json`.

    whelp reward --model runs/assistant/sft --output_dir runs/ensemble trainable_layers=4 reward.members=5
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results import RECORDS, commit, machine
from scipy.stats import mannwhitneyu
from torch import Tensor

from whelp.config import Recipe
from whelp.engines.base import Engine, Held, ModelSpec, OptimizerSpec
from whelp.maths.preference import BradleyTerry
from whelp.maths.shaping import aggregate
from whelp.maths.shaping import doubt as doubt_of
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.files import write_json_atomic
from whelp.runs.manifest import Run
from whelp.scorers import members_in, reward_engine
from whelp.stages.comparisons import prompts_of, render, rows_by_ranking
from whelp.stages.reward import bootstraps, terms_of
from whelp.text.chat import sequences
from whelp.types import Estimate, Ranking
from whelp.workplace import Workplace

RANKINGS, BATCH, ROUNDS, SHOWN, DRAWS, SHORTEST = 32, 8, 3, 200, 1000, 4
NAME = "reward"


def workplace() -> Workplace:
    return Workplace(load_recipe("assistant", []), Run(Path(tempfile.mkdtemp())), PlainProgress())


def train(engine: Engine, held: Held, rankings: Sequence[Ranking], members: int) -> None:
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
    found: dict[int, list[tuple[float, float]]] = {1: [], 5: []}
    for _ in range(ROUNDS):
        for members, rounds in found.items():
            rounds.append(seconds(place, rankings, members))
            print("{} members: training {:.1f} s, scoring {:.1f} s".format(members, *rounds[-1]), flush=True)
    record: dict[str, Any] = {"machine": machine(), "commit": commit(), "seconds": found}
    for place_in, what in enumerate(("training", "scoring")):
        one, five = (min(times[place_in] for times in found[members]) for members in (1, 5))
        record[what] = five / one
        print(f"{what}: five members take {record[what]:.2f} times what one takes")
    write_json_atomic(RECORDS / "ensemble-cost.json", record)


def doubt(folder: Path) -> None:
    run = Run(folder.resolve().parent)
    recipe = Recipe.model_validate(run.manifest()["recipe"])
    place = Workplace(recipe, run, PlainProgress())
    engine = reward_engine(place, folder)
    shift = torch.tensor(engine.config(NAME).reward_member_shifts)
    known = [(ranking.prompt, ranking.completions[0]) for ranking in place.rankings.held_out[:SHOWN]]
    strange = length_matched(manual(), [len(text.split()) for _, text in known])
    texts = [*known, *((prompt, text) for (prompt, _), text in zip(known, strange, strict=True))]
    with engine.hold(sequences([engine.chat.answer(prompt, text) for prompt, text in texts])) as held:
        scores, within = engine.rewards(NAME, held) - shift[:, None], engine.reward_variance(NAME, held)
    parts = {
        "doubt": doubt_of(scores, within),
        "over members": doubt_of(scores, 0 * within),
        "within members": within.mean(0),
    }
    weighted = aggregate(scores, "uncertainty", recipe.ppo.uncertainty_coef, within)
    record = {
        "seed": recipe.seed,
        "machine": machine(),
        "commit": commit(),
        "members": len(shift),
        "texts": len(known),
        "words": [statistics.mean(len(text.split()) for text in side) for side in ([t for _, t in known], strange)],
        "variance": {name: means(variance, len(known)) for name, variance in parts.items()},
        "area": {
            name: area_under_roc(variance[len(known) :], variance[: len(known)]).as_dict()
            for name, variance in parts.items()
        },
        "score": {"mean": means(scores.mean(0), len(known)), "uncertainty": means(weighted, len(known))},
    }
    write_json_atomic(RECORDS / f"doubt-{recipe.seed}.json", record)
    print("{} answers of {:.1f} words, as many texts of {:.1f}".format(len(known), *record["words"]))
    for name, area in record["area"].items():
        mine, theirs = record["variance"][name]
        print(
            f"{name}: {mine:.3f} of held-out answers, {theirs:.3f} of the manual; area under the ROC curve {area['mean']:.3f} "
            f"({area['low']:.3f} to {area['high']:.3f})"
        )
    for how, (mine, theirs) in record["score"].items():
        print(f"mean score by {how}: {mine:.2f} of held-out answers, {theirs:.2f} of the manual")


def means(values: Tensor, known: int) -> list[float]:
    """Of the held-out answers, and of the texts behind them."""
    return [float(side.mean()) for side in values.split(known)]


def area_under_roc(above: Tensor, below: Tensor) -> Estimate:
    """How often one of `above` exceeds one of `below`; the interval draws texts of both, each with its match in length."""

    def area(rows: Tensor) -> float:
        return float(mannwhitneyu(above[rows], below[rows]).statistic) / len(rows) ** 2

    draw = torch.Generator().manual_seed(0)
    areas = torch.tensor([area(torch.randint(len(above), (len(above),), generator=draw)) for _ in range(DRAWS)])
    low, high = torch.quantile(areas, torch.tensor([0.025, 0.975], dtype=areas.dtype)).tolist()
    return Estimate(area(torch.arange(len(above))), low, high, len(above))


def manual() -> list[str]:
    """Sentences of the running text in Python's manual, each once."""
    from pydoc_data.topics import topics

    paragraphs = [" ".join(p.split()) for text in topics.values() for p in text.split("\n\n")]
    prose = [p for p in paragraphs if len(p.split()) > 12 and re.fullmatch(r"[A-Z][\w ,.;:'()\"*`/\-]+[.:]", p)]
    sentences = [sentence for p in prose for sentence in re.split(r"(?<=[.:]) (?=[A-Z])", re.sub(r'["*`]', "", p))]
    return list(dict.fromkeys(sentence for sentence in sentences if len(sentence.split()) >= SHORTEST))


def length_matched(sentences: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """For each length whole sentences of about as many words in all: again and again the first of those left that fits."""
    left = [(len(sentence.split()), sentence) for sentence in sentences]
    there = sum(words for words, _ in left)
    if there < 1.25 * sum(lengths):
        sys.exit(f"the manual has {there} words, and texts of {sum(lengths)} words are to be made of it; lower SHOWN")
    result = []
    for length in lengths:
        taken, missing = [], length
        while missing > 0:
            fitting = next((one for one in left if one[0] <= 1.25 * missing), None)
            if fitting is None and taken:
                break
            words, sentence = fitting or min(left)
            left.remove((words, sentence))
            taken.append(sentence)
            missing -= words
        result.append(" ".join(taken))
    return result


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
