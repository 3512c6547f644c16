"""whelp's side of a race. `python ours.py WORK SIDE`: what is to be done, and with which settings, as JSON."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from turns import Turns, asked

from whelp.engines import local
from whelp.engines.base import Engine, SamplingParams
from whelp.engines.sampler import Row, Sampler
from whelp.maths.preference import BradleyTerry
from whelp.maths.shaping import RunningMoments
from whelp.progress import PlainProgress
from whelp.recipes import load_recipe
from whelp.rewards.model import ModelReward
from whelp.rewards.rules import CheckerReward
from whelp.runs.manifest import Run
from whelp.scorers import critic
from whelp.stages import ppo, sft
from whelp.stages.comparisons import rows_by_ranking
from whelp.stages.context import epochs_of_batches
from whelp.stages.reward import terms_of
from whelp.text.chat import sampled
from whelp.training import optimizer, ppo_optimizer
from whelp.types import Message, Prompt, Ranking, Sequences
from whelp.workplace import Workplace

Counts = dict[str, int]


class Fixed(Sampler):
    """Ends each answer where it is told to, so that both sides make the same tokens."""

    lengths: Sequence[int] = ()
    """Of the answer to each prompt."""

    def _draw(self, rows: Sequence[Row], logits: torch.Tensor, params: SamplingParams) -> None:
        super()._draw(rows, logits, params)
        (end, *_) = self.end_ids
        for row in rows:
            is_last = len(row.tokens) == self.lengths[row.prompt]
            row.tokens[-1] = end if is_last else row.tokens[-1] + (row.tokens[-1] in self.end_ids)


def workplace(work: dict[str, Any], side: dict[str, Any]) -> Workplace:
    settings = [f"{name}={value}" for name, value in {**work["settings"], **side}.items()]
    recipe = load_recipe("assistant", [f"dtype={work['dtype']}", *settings])
    place = Workplace(recipe, Run(Path(tempfile.mkdtemp())), PlainProgress())
    if str(place.base) != work["model"]:
        sys.exit(f"whelp's model is {place.base}; expected {work['model']}")
    return place


def prompts_of(work: dict[str, Any], engine: Engine) -> list[Prompt]:
    prompts = [Prompt(f"prompt-{i}", (Message("user", text),)) for i, text in enumerate(work["texts"])]
    if [list(engine.chat.prompt(prompt)) for prompt in prompts] != work["prompts"]:
        sys.exit("the prompts' tokens are not those of the race")
    return prompts


def decode(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    engine = place.engine(place.base)
    engine.add("policy", place.spec(place.base))
    prompts = prompts_of(work, engine)
    Fixed.lengths, local.Sampler = work["lengths"], Fixed
    params = SamplingParams(1, work["temperature"], max(work["lengths"]))
    while True:
        yield {"generated": sum(len(c.tokens) for c in engine.sample("policy", prompts, params))}


def forward(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    engine = place.engine(place.base)
    engine.add("policy", place.spec(place.base))
    data = sequences_of(work)
    while True:
        with engine.hold(data) as held:
            yield {"scored": int(engine.logprobs("policy", held).is_response.sum())}


def score_by_roles(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    """The same sequences by `work["roles"]` policies, each of which has layers of its own on one trunk."""
    engine = place.engine(place.base)
    roles = [f"role-{i}" for i in range(work["roles"])]
    engine.add(roles[0], place.spec(place.base))
    for role in roles[1:]:
        engine.add(role, place.spec(None, copy_of=roles[0]))
    data = sequences_of(work)
    while True:
        with engine.hold(data) as held:
            yield {"scored": sum(int(engine.logprobs(role, held).is_response.sum()) for role in roles)}


def train_sft(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    config, data = place.recipe.sft, sequences_of(work)
    engine = place.engine(place.base)
    layers = place.recipe.sft_layers
    engine.add("policy", place.spec(place.base, trainable_layers=layers, optimizer=optimizer(config)))
    batches = epochs_of_batches(len(data), config.per_step_batch_size, config.num_train_epochs, 0)
    while True:
        with engine.hold(data) as held:
            for rows in batches:
                engine.update([sft.term(held.select(rows))], {"policy": 1e-6})
        yield {"trained": sum(len(data.tokens[row]) for rows in batches for row in rows), "steps": len(batches)}


def train_reward(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    config, data = place.recipe.reward, sequences_of(work)
    engine = place.engine(place.base)
    engine.add("reward", place.spec(place.base, head="scalar", fresh_head=True, optimizer=optimizer(config)))
    rankings = [
        Ranking(Prompt(str(group), ()), ("",) * count, tuple(range(1, count + 1)))
        for group, count in sorted(Counter(data.group).items())
    ]
    batches = epochs_of_batches(len(rankings), config.per_step_batch_size, config.num_train_epochs, 0)
    rows_of, once = rows_by_ranking(rankings), [[1] * len(rankings)]
    pairs = sum(len(rankings[i].pairs()) for chosen in batches for i in chosen)
    while True:
        with engine.hold(data) as held:
            for chosen in batches:
                engine.update(terms_of(held, rankings, rows_of, chosen, once, BradleyTerry()), {"reward": 1e-6})
        yield {"pairs": pairs, "steps": len(batches)}


def ppo_engine(place: Workplace) -> Engine:
    """As `jobs.ppo_work` has it, with a reward model that knows nothing yet."""
    config = place.recipe.ppo
    engine = place.engine(place.base, temperature=config.temperature)
    engine.add("policy", place.spec(place.base, optimizer=ppo_optimizer(config)))
    engine.add("reference", place.spec(None, copy_of="policy"))
    engine.add("reward", place.spec(place.base, head="scalar", fresh_head=True))
    engine.add("value", critic(place, engine, ppo_optimizer(config)))
    return engine


def learn(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    """One iteration a turn, as `stages.ppo.train` has it, of fresh prompts that their checks score."""
    config, engine = place.recipe.ppo, ppo_engine(place)
    checked = zip(prompts_of(work, engine), work["checks"], strict=True)
    prompts = [replace(prompt, check=check) for prompt, check in checked]
    turns.save = lambda folder: engine.export("policy", folder)
    iterations, reward = config.total_episodes // config.batch_size, CheckerReward(beside_twins=False)
    for step in range(1, iterations + 1):
        batch, copies = ppo.batch_of_prompts(prompts, config.batch_size, step, 0, config.num_generations)
        completions = ppo.sample(engine, batch, copies, config, (0, step))
        with engine.hold(sampled(engine.chat, completions)) as held:
            rollout = ppo.score(engine, completions, held, reward, config, RunningMoments())
            ppo.learn(engine, rollout, config.kl_coef, config, step, iterations, 0)
        yield {"episodes": len(completions)}


def train_ppo(turns: Turns, place: Workplace, work: dict[str, Any]) -> Iterator[Counts]:
    """One iteration a turn: as `stages.ppo.train` has it, always of the same prompts."""
    config, engine = place.recipe.ppo, ppo_engine(place)
    prompts = prompts_of(work, engine)
    Fixed.lengths, local.Sampler = work["lengths"], Fixed
    reward = ModelReward(engine, "reward", torch.zeros(1))
    step = 0
    while True:
        step += 1
        completions = ppo.sample(engine, prompts, 1, config, (0, step))
        with engine.hold(sampled(engine.chat, completions)) as held:
            rollout = ppo.score(engine, completions, held, reward, config, RunningMoments())
            metrics = ppo.learn(engine, rollout, config.kl_coef, config, step, 1000, 0)
        tokens, updates = sum(len(c.tokens) for c in completions), int(metrics["updates"])
        yield {"generated": tokens, "trained": tokens * config.num_ppo_epochs, "steps": updates}


def sequences_of(work: dict[str, Any]) -> Sequences:
    return Sequences([tuple(t) for t in work["tokens"]], [tuple(m) for m in work["is_response"]], work["group"])


KINDS: dict[str, Callable[[Turns, Workplace, dict[str, Any]], Iterator[Counts]]] = {
    "decode": decode,
    "forward": forward,
    "roles": score_by_roles,
    "sft": train_sft,
    "reward": train_reward,
    "ppo": train_ppo,
    "learn": learn,
}


def main() -> None:
    turns = Turns()
    work, side = asked()
    counts = KINDS[work["kind"]](turns, workplace(work, side), work)
    while True:
        turns.wait()
        turns.done(**next(counts))


if __name__ == "__main__":
    main()
