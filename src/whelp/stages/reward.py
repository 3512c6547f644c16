"""The reward model: which of two answers would people prefer, learned from rankings (Bradley-Terry)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.config import RewardConfig
from whelp.engines.base import Engine, Held, Metrics, SamplingParams, Term
from whelp.errors import DataError
from whelp.maths.preference import BradleyTerry
from whelp.stages.comparisons import prompts_of, render, rows_by_ranking, targets
from whelp.stages.context import Record, Stage, numbers, planned, shuffled, warmup_then_linear
from whelp.stages.trust import measure
from whelp.text.chat import Chat, Rendered, sequences
from whelp.text.negatives import negatives
from whelp.types import Demonstration, Prompt, Ranking

SCALE_PROMPTS = 64
POSTERIOR_RANKINGS = 256
"""Rankings whose answers show what the trained head is sure of: with 4 answers each, twice as many as the default model's
hidden state has dimensions."""


def train(
    engine: Engine,
    chat: Chat,
    rankings: Sequence[Ranking],
    held_out: Sequence[Ranking],
    config: RewardConfig,
    stage: Stage,
) -> dict[str, Any]:
    """Train the engine's model "reward"; returns the stage's metrics, measured on `held_out` beside baselines that learned
    from the same rankings."""
    learned = [*rankings, *negatives(rankings, config.negatives, config.negative_kinds)]
    used, batches = planned(
        len(learned), config.per_step_batch_size, config.num_train_epochs, config.max_steps, stage.seed
    )
    count = sum(i < len(rankings) for i in used)
    learned = [learned[i] for i in used]
    rankings, made = learned[:count], learned[count:]
    data, too_long = render(chat, learned)
    rows_of = rows_by_ranking(learned)
    loss = BradleyTerry(config.center_rewards_coefficient)
    drawn = bootstraps(prompts_of(learned), config.members, stage.seed)
    start, _ = stage.resume(engine)
    with engine.hold(data) as held, stage.listening(), stage.progress.steps("reward model", len(batches)) as bar:
        bar.advance(start)
        for step, chosen in enumerate(batches[start:], start + 1):
            lr = config.learning_rate * warmup_then_linear(step - 1, len(batches), config.warmup_ratio)
            terms = terms_of(held, learned, rows_of, chosen, drawn, loss, config.label_smoothing)
            with stage.step(step, [learned[i].prompt.id for i in chosen]):
                metrics = over_members(engine.update(terms, {"reward": lr}))
            stage.log.append(step, lr=lr, **metrics)
            stage.end_step(engine, step, len(batches))
            bar.advance(1, **numbers(metrics, "loss", "accuracy"))
        sample = [row for i in shuffled(count, stage.seed, 0)[:POSTERIOR_RANKINGS] for row in rows_of[i]]
        engine.fit_posterior("reward", held.select(sample), pairs=count)  # a ranking weighs as one pair
    return {
        **measure(engine, chat, rankings, held_out),
        "train_prompts": len(set(prompts_of(rankings))),
        "train_rankings": len(rankings),
        "train_pairs": sum(len(ranking.pairs()) for ranking in rankings),
        "train_negatives": sum(len(ranking.completions) - 1 for ranking in made),
        **too_long,
        "steps": len(batches),
    }


def terms_of(
    held: Held,
    rankings: Sequence[Ranking],
    rows_of: Sequence[Sequence[int]],
    chosen: Sequence[int],
    drawn: Sequence[Sequence[int]],
    loss: BradleyTerry,
    label_smoothing: float = 0.0,
) -> list[Term]:
    """What each member learns from the `chosen` rankings: those that its bootstrap drew, as often as it drew them."""
    terms = []
    for member, count in enumerate(drawn):
        mine = [i for i in chosen if count[i]]
        if mine:
            batch = [replace(rankings[i], weight=count[i] * rankings[i].weight) for i in mine]
            rows = held.select([row for i in mine for row in rows_of[i]])
            terms.append(Term("reward", rows, targets(batch, label_smoothing), loss, member=member))
    return terms


def bootstraps(prompts: Sequence[int], members: int, seed: int) -> list[list[int]]:
    """How often each member of an ensemble learns from each ranking, given the number of its prompt: prompts are drawn with
    replacement, with all their rankings, so that the members disagree where the data say little. A model alone learns from
    each once."""
    if members == 1:
        return [[1] * len(prompts)]
    count = 1 + max(prompts)
    result = []
    for member in range(members):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + 500_000 + member)
        times = torch.randint(count, (count,), generator=draw).bincount(minlength=count).tolist()
        result.append([times[prompt] for prompt in prompts])
    return result


def over_members(metrics: Metrics) -> Metrics:
    """`reward/member-3/loss` and its like as the mean over the members that learned, under `loss`."""
    found: dict[str, list[float]] = {}
    for key, value in metrics.items():
        found.setdefault(key.rpartition("/")[2], []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


# -- where zero is, and how large one is ------------------------------------------------------------------------------


def scale(
    engine: Engine,
    chat: Chat,
    rankings: Sequence[Ranking],
    demonstrations: Sequence[Demonstration],
    sampling: SamplingParams | None = None,
) -> tuple[float, list[float]]:
    """(gain, shift of each member): the demonstrations' mean lies at 0 and the policy's own samples have unit variance.
    Every member has a zero of its own, which differences in training leave open.

    `sampling` is how PPO will sample the engine's model "policy"; None where there is none. Measured on `SCALE_PROMPTS` of
    each, drawn from all; prompts that fill the context alone are passed over. Without demonstrations or a policy the rankings'
    completions stand in for what is missing.
    """
    some = drawn(rankings)
    written = member_scores(engine, [chat.demonstration(d) for d in drawn(demonstrations)])
    sampled = torch.empty(1, 0)
    if sampling is not None:
        prompts = [ranking.prompt for ranking in some if leaves_room(chat, ranking.prompt)]
        completions = list(engine.sample("policy", prompts, sampling))
        sampled = member_scores(engine, [chat.completion(chat.prompt(c.prompt), c.tokens) for c in completions])
    if not written.shape[1] or sampled.shape[1] < 2:
        ranked = member_scores(engine, [chat.answer(r.prompt, text) for r in some for text in r.completions])
        written = written if written.shape[1] else ranked
        sampled = sampled if sampled.shape[1] > 1 else ranked
    gain = float(1.0 / sampled.mean(0).std().clamp_min(1e-4))
    return gain, (gain * written.mean(1)).tolist()


def drawn(records: Sequence[Record]) -> list[Record]:
    """`SCALE_PROMPTS` of them: the first ones may all be of one kind."""
    return [records[i] for i in shuffled(len(records), 0, 0)[:SCALE_PROMPTS]]


def leaves_room(chat: Chat, prompt: Prompt) -> bool:
    try:
        return chat.max_length is None or len(chat.prompt(prompt)) < chat.max_length
    except DataError:
        return False


def member_scores(engine: Engine, rendered: Sequence[Rendered], group: Sequence[int] = ()) -> Float[Tensor, "M N"]:
    """Raw scores of rendered conversations by every member. What those of one `group` begin with is computed once."""
    if not rendered:
        return torch.empty(1, 0)
    with engine.hold(sequences(rendered, group)) as held:
        return engine.rewards("reward", held)
