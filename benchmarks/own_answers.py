"""Does a reward model know which of the policy's own answers is better? Its order against the checks of the evaluation.

    python benchmarks/own_answers.py runs/assistant                       the run's reward model and judge
    python benchmarks/own_answers.py runs/assistant another/run/reward    any reward models

Pairs are of answers of the SFT and the RLHF model to one evaluation prompt, greedy or sampled, of which one passes its check and
the other does not; intervals draw whole prompts. docs/decisions/0014 quotes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from whelp.config import Recipe
from whelp.progress import PlainProgress
from whelp.runs.manifest import Run
from whelp.runs.metrics import MetricsLog
from whelp.scorers import reward_engine
from whelp.stages import on_policy
from whelp.text.chat import sequences
from whelp.text.formats import read_prompts
from whelp.types import Completion, Prompt
from whelp.workplace import Workplace


def answers(rows: Sequence[Mapping[str, Any]], prompts: Mapping[str, Prompt]) -> list[Completion]:
    """Those of the SFT and the RLHF model to prompts of which some pass and some do not."""
    outcomes: dict[str, set[bool]] = {}
    own = [row for row in rows if row["model"] != "base" and row["id"] in prompts and row["passes"] is not None]
    for row in own:
        outcomes.setdefault(row["id"], set()).add(row["passes"])
    told_apart = [row for row in own if len(outcomes[row["id"]]) == 2]
    return [Completion(prompts[r["id"]], r["completion"], (), (), r["is_finished"]) for r in told_apart]


def scores(place: Workplace, reward: Path, completions: Sequence[Completion]) -> Tensor:
    engine = reward_engine(place, reward)
    with engine.hold(sequences([engine.chat.answer(c.prompt, c.text) for c in completions])) as held:
        return engine.rewards("reward", held).mean(0)


def line(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    pairs, rate = on_policy.accuracy(rows)
    return f"| {name} | {pairs} | {rate.mean:.0%} ({rate.low * 100:.0f} to {rate.high * 100:.0f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that was evaluated")
    parser.add_argument(
        "rewards", type=Path, nargs="*", help="reward models; the run's reward model and judge unless given"
    )
    options = parser.parse_args()
    run = Run(options.run)
    recipe = Recipe.model_validate(run.manifest()["recipe"])
    place = Workplace(recipe, run, PlainProgress())
    prompts = {prompt.id: prompt for prompt in read_prompts(recipe.evaluate.prompts).records}
    completions = answers(MetricsLog.read(run.stage_dir("evaluate") / "completions.jsonl"), prompts)
    for reward in options.rewards or [run.stage_dir("reward"), run.stage_dir("judge")]:
        rows = list(on_policy.order(completions, scores(place, reward, completions)))
        print(f"\n{reward}\n\n| pairs | number | ordered rightly |\n|---|---|---|\n{line('all', rows)}")
        for category in sorted({prompts[row["prompt"]].category for row in rows}):
            print(line(category, [row for row in rows if prompts[row["prompt"]].category == category]))


if __name__ == "__main__":
    main()
