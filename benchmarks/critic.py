"""How fast PPO's critic learns: the share of the score's variance that it explains in answers it has not seen.

    python benchmarks/critic.py runs/checker/sft --lr 3e-4 1e-3 --epochs 2

Two batches of answers are sampled from the model as PPO's first two iterations would; the critic learns from the scores of the
first and is measured on the second, at the first token (it knows the prompt alone) and at the last (it knows the answer). Two
marks to hold it against: guessing the mean score of the prompt's category, and knowing the mean score of every prompt, which
explains as much as the scores of two answers to one prompt correlate.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whelp.config import PPOConfig
from whelp.engines.base import Held, ModelSpec, Term
from whelp.engines.batching import response_index
from whelp.engines.devices import choose
from whelp.engines.local import LocalEngine
from whelp.maths.policy import ValueLoss, ValueTargets
from whelp.models.loading import load_tokenizer
from whelp.recipes import load_recipe
from whelp.rewards.rules import CheckerReward
from whelp.stages.ppo import batch_of_prompts, explained_variance, minibatches, sample
from whelp.text.chat import Chat, sampled
from whelp.text.formats import read_prompts
from whelp.training import ppo_optimizer
from whelp.types import Completion


@dataclass(frozen=True)
class Batch:
    """Answers with their scores [B]; `is_response` [B, R]."""

    completions: Sequence[Completion]
    held: Held
    scores: Tensor
    is_response: Tensor


def batch(engine: LocalEngine, config: PPOConfig, step: int, seed: int, stack: ExitStack) -> Batch:
    prompts, copies = batch_of_prompts(read_prompts(config.train_file).records, config.batch_size, step, seed)
    completions = sample(engine, prompts, copies, config, (seed, step))
    held = stack.enter_context(engine.hold(sampled(engine.chat, completions)))
    _, _, is_response = response_index(held.sequences.is_response)
    return Batch(completions, held, CheckerReward()(completions, held), is_response)


def explained(guess: Tensor, scores: Tensor) -> float:
    return explained_variance(
        ValueTargets(guess[:, None], scores[:, None], torch.ones(len(scores), 1, dtype=torch.bool))
    )


def report(name: str, engine: LocalEngine, on: Batch) -> str:
    values = engine.values("value", on.held)
    last = values.gather(1, on.is_response.sum(1, keepdim=True) - 1).squeeze(1)
    return f"{name}: first token {explained(values[:, 0], on.scores):.2f}, last {explained(last, on.scores):.2f}"


def marks(first: Batch, second: Batch) -> str:
    by_category, by_prompt = defaultdict(list), {}
    for completion, score in zip(first.completions, first.scores.tolist(), strict=True):
        by_category[completion.prompt.category].append(score)
        by_prompt[completion.prompt.id] = score
    guesses = [by_category[c.prompt.category] for c in second.completions]
    category = torch.tensor([sum(scores) / len(scores) for scores in guesses])
    twice = [
        (by_prompt[c.prompt.id], score)
        for c, score in zip(second.completions, second.scores.tolist(), strict=True)
        if c.prompt.id in by_prompt
    ]
    correlation = float(torch.corrcoef(torch.tensor(twice).T)[0, 1])
    return (
        f"category {explained(category, second.scores):.2f}, prompt {correlation:.2f} ({len(twice)} prompts seen twice)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an SFT model's folder")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = load_recipe("checker")
    config = recipe.ppo
    engine = LocalEngine(Chat(load_tokenizer(options.model)), choose(), config.temperature)
    engine.add("policy", ModelSpec(source=options.model, trainable_layers=recipe.trainable_layers))
    critic = ModelSpec(
        copy_of="policy",
        head="scalar",
        head_std=0.0,
        trainable_layers=recipe.trainable_layers,
        optimizer=ppo_optimizer(config),
    )
    with ExitStack() as stack:
        first, second = (batch(engine, config, step, options.seed, stack) for step in (1, 2))
        print(marks(first, second), flush=True)
        for lr in options.lr:
            engine.models.pop("value", None)
            engine.add("value", critic)
            returns = first.scores[:, None].expand(first.is_response.shape)
            for epoch in range(1, options.epochs + 1):
                for rows in minibatches(len(returns), config.num_mini_batches, options.seed, epoch):
                    targets = ValueTargets(torch.zeros_like(returns[rows]), returns[rows], first.is_response[rows])
                    engine.update(
                        [Term("value", first.held.select(rows), targets, ValueLoss(float("inf")))], {"value": lr}
                    )
                seen, fresh = report("seen", engine, first), report("fresh", engine, second)
                print(f"lr {lr:g}, epoch {epoch}: {seen}; {fresh}", flush=True)


if __name__ == "__main__":
    main()
