"""Online rounds: the newest policy answers, its answers are ranked, and they teach the next reward model.

A round is three stages: `label-1`, then `reward-1` and `ppo-1` as in the run's first part, the policy from the SFT model again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whelp.engines.base import SamplingParams
from whelp.errors import DataError, Interrupted
from whelp.runs.files import write_text_atomic
from whelp.scorers import labeller, members_in
from whelp.stages import trust
from whelp.stages.comparisons import render, strict_pairs
from whelp.stages.context import shuffled
from whelp.text.chat import sequences
from whelp.text.formats import read_rankings, read_source
from whelp.types import Completion, Ranking
from whelp.workplace import Workplace

RANKED = "rankings.jsonl"
TO_RANK = "to_rank.jsonl"


def folders(place: Workplace) -> list[Path]:
    """What was labelled up to this round, oldest first."""
    return [place.at(k).folder("label") for k in range(1, place.round + 1)]


def labelled(place: Workplace) -> list[Ranking]:
    """All rankings of the rounds up to this one."""
    return [ranking for folder in folders(place) for ranking in labelled_in(folder)]


def labelled_in(folder: Path) -> Sequence[Ranking]:
    return read_rankings(folder / RANKED).records


def work(place: Workplace) -> dict[str, Any]:
    """Rank the newest policy's answers, and see how often the reward model that it learned from orders them rightly.

    Raises `Interrupted` where people are to rank them and have not yet, `DataError` where what they wrote cannot be used.
    """
    folder = place.folder("label")
    if place.recipe.rounds.labels:
        rows = answered(place)
    else:
        if not (folder / TO_RANK).exists():
            write(folder / TO_RANK, answered(place))
        rows = ranked_by_people(folder / TO_RANK)
    told_apart = [row for row in rows if len(set(row["ranks"])) > 1]
    if not told_apart:
        raise DataError(
            f"{folder}: of {len(rows)} prompts none has answers of different ranks, so there is nothing to learn."
        )
    write(folder / RANKED, told_apart)
    result = {"prompts": len(rows), "uncompared": len(rows) - len(told_apart), **how_right(place, labelled_in(folder))}
    a = result["accuracy"]
    place.progress.say(
        f"{place.named('label')}: the reward model that the policy learned from orders {a['mean']:.0%} ({a['low']:.0%} to "
        f"{a['high']:.0%}) of {result['pairs']} fresh pairs rightly"
    )
    return result


def answered(place: Workplace) -> list[dict[str, Any]]:
    """A record for each drawn prompt, with its different answers and their ranks: null where people are to write them."""
    config, ppo = place.recipe.rounds, place.recipe.ppo
    every = place.prompts.records
    prompts = [every[i] for i in shuffled(len(every), place.recipe.seed, place.round)[: config.prompts]]
    policy = place.at(place.round - 1).folder("ppo")
    engine = place.engine(policy, temperature=ppo.temperature)
    place.add(engine, "policy", policy)
    key = ("round", place.recipe.seed, place.round)
    params = SamplingParams(config.num_generations, ppo.temperature, ppo.response_length, key)
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    written = (c for c in engine.sample("policy", prompts, params) if c.text.strip())
    completions = sorted(written, key=lambda c: (order[c.prompt.id], c.sample))
    scores: list[float | None] = [None] * len(completions)
    if config.labels:
        label = labeller(place, engine)
        # As the reward model will read them, and not the tokens that were sampled: another spelling may give the same text.
        rendered = [engine.chat.answer(c.prompt, c.text.strip()) for c in completions]
        with engine.hold(sequences(rendered)) as held:
            scores = label(completions, held).tolist()
    groups: dict[str, dict[str, tuple[Completion, float | None]]] = {}
    for completion, score in zip(completions, scores, strict=True):
        groups.setdefault(completion.prompt.id, {}).setdefault(completion.text.strip(), (completion, score))
    return [row(place.round, list(group.values()), config.label) for group in groups.values() if len(group) > 1]


def row(number: int, answers: Sequence[tuple[Completion, float | None]], label: str) -> dict[str, Any]:
    """One ranking as a record; ranks are places among the scores, equal scores are ties."""
    prompt, scores = answers[0][0].prompt, [score for _, score in answers]
    known = [score for score in scores if score is not None]
    return {
        "id": f"round-{number}-{prompt.id}",
        "category": prompt.category,
        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "completions": [completion.text.strip() for completion, _ in answers],
        "ranks": [None if score is None else 1 + sum(other > score for other in known) for score in scores],
        "source": label,
    }


def ranked_by_people(file: Path) -> list[dict[str, Any]]:
    """The records of `file` with the ranks that people wrote.

    Raises `Interrupted` where they have written none, `DataError` where only some are ranked, or by something else than numbers.
    """
    source = read_source(file)
    rows = [row.value if isinstance(row.value, dict) else {} for row in source.rows]
    ranks: list[list[Any]] = [row["ranks"] if isinstance(row.get("ranks"), list) else [None] for row in rows]
    if all(rank is None for given in ranks for rank in given):
        raise Interrupted(
            f"{len(rows)} prompts with their answers wait for people in {file}: write into each record's ranks 1 for the best "
            "answer, 2 for the next, and equal numbers for a tie"
        )
    are_numbers = [all(type(rank) is int and rank >= 1 for rank in given) for given in ranks]
    if wrong := [row.line for row, fine in zip(source.rows, are_numbers, strict=True) if not fine]:
        raise DataError(
            f"{file}: {len(wrong)} of {len(rows)} records are not ranked (line {', '.join(map(str, wrong[:5]))}): expected a "
            "whole number from 1 for each answer. Take out a record that nobody can rank."
        )
    return rows


def how_right(place: Workplace, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Accuracy of the round before's reward model on fresh pairs."""
    folder = place.at(place.round - 1).reward_model
    engine = place.engine(folder, place.recipe.reward.max_length)
    engine.add("reward", place.spec(folder, head="scalar", members=members_in(folder)))
    with engine.hold(render(engine.chat, rankings)[0]) as held:
        accuracy = trust.accuracy(engine, "reward", held, rankings)
    return {"pairs": len(strict_pairs(rankings)[0]), "accuracy": accuracy.as_dict()}


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
