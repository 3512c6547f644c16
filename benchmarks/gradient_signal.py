"""How much of PPO's first gradient is signal: whether two halves of the prompts agree about where to go.

    python benchmarks/gradient_signal.py runs/assistant

Four answers to each of many prompts are sampled from the run's SFT model and scored by its reward model. For each half of the
prompts the gradient is made twice: with the mean score of all answers as the baseline, and with that of the other answers
to the same prompt. The cosine between the halves' gradients is 0 for noise alone and 1 for none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from whelp.engines.base import OptimizerSpec, Term
from whelp.engines.local import LocalEngine
from whelp.maths.advantage import rloo
from whelp.maths.policy import PPOLoss, PPOTargets
from whelp.maths.shaping import missing_eos
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.runs.manifest import Run
from whelp.scorers import scorer, where_trusted
from whelp.stages import ppo
from whelp.stages.context import shuffled, spread
from whelp.text.chat import sampled
from whelp.types import Completion
from whelp.workplace import Workplace

ANSWERS, PROMPTS_A_PIECE = 4, 8


def gradient(engine: LocalEngine, completions: Sequence[Completion], advantages: Tensor) -> Tensor:
    """Of the first update on these answers, mean over pieces, flat; nothing is trained."""
    weights = engine.models["policy"].weights
    assert weights is not None
    total, pieces = torch.zeros(sum(master.numel() for master in weights.masters)), 0

    def note() -> float:
        total.add_(torch.cat([master.grad.flatten().cpu() for master in weights.masters if master.grad is not None]))
        return 0.0

    weights.clip = note
    for start in range(0, len(completions), PROMPTS_A_PIECE * ANSWERS):
        rows = slice(start, start + PROMPTS_A_PIECE * ANSWERS)
        with engine.hold(sampled(engine.chat, completions[rows])) as held:
            old = engine.logprobs("policy", held)
            targets = PPOTargets(old.logprobs, old.is_response * advantages[rows, None], old.is_response)
            engine.update([Term("policy", held, targets, PPOLoss())], {"policy": 0.0})
        pieces += 1
    return total / pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run of the assistant recipe with sft and reward")
    parser.add_argument("--prompts", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = load_recipe("assistant", [f"seed={options.seed}", f"output_dir={options.run}"])
    place = Workplace(recipe, Run(options.run), PlainProgress())
    engine = place.engine(place.policy, temperature=recipe.ppo.temperature)
    engine.add("policy", place.spec(place.policy, optimizer=OptimizerSpec()))
    reward = scorer(place, engine)
    prompts = spread(where_trusted(place, place.prompts.records), options.prompts, lambda prompt: prompt.category)
    completions = ppo.sample(engine, prompts, ANSWERS, recipe.ppo, ("signal", options.seed))
    with engine.hold(sampled(engine.chat, completions)) as held:
        is_finished = torch.tensor([completion.is_finished for completion in completions])
        scores = missing_eos(reward(completions, held), is_finished, recipe.ppo.missing_eos_penalty)
    within = scores.reshape(-1, ANSWERS).var(1).mean().sqrt()
    print(f"spread of the scores: {scores.std():.2f}, among the answers to a prompt {within:.2f}", flush=True)
    group = torch.arange(len(prompts)).repeat_interleave(ANSWERS)
    beside = rloo(scores[:, None], torch.ones(len(scores), 1, dtype=torch.bool), group)[:, 0]
    order = shuffled(len(prompts), options.seed, 0)
    halves = [[p * ANSWERS + k for p in part for k in range(ANSWERS)] for part in (order[::2], order[1::2])]
    for name, advantages in {"all answers": scores - scores.mean(), "the other answers": beside}.items():
        one, two = (
            gradient(cast(LocalEngine, engine), [completions[i] for i in rows], advantages[rows]) for rows in halves
        )
        print(f"baseline {name}: cosine of the halves {torch.cosine_similarity(one, two, dim=0):.3f}", flush=True)


if __name__ == "__main__":
    main()
