"""Online rounds: the newest policy answers, its answers are ranked, and they teach the next reward model.

A round is three stages: `label-1`, then `reward-1` and `ppo-1` as in the run's first part, the policy from the SFT model again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whelp.engines.base import SamplingParams
from whelp.errors import DataError, Interrupted
from whelp.progress import rate
from whelp.runs.files import as_lines, sha256_json, write_text_atomic
from whelp.scorers import labeller, reward_engine
from whelp.splits import begun
from whelp.stages import trust
from whelp.stages.comparisons import render, strict_pairs
from whelp.stages.context import answers_in_order, shuffled
from whelp.text.chat import sequences
from whelp.text.formats import prompt_hash, read_rankings, read_source
from whelp.types import Completion, Prompt, Ranking
from whelp.workplace import Workplace

RANKED = "rankings.jsonl"


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
    rows = answered(place) if place.recipe.rounds.labels else ranked_by_people(place)
    told_apart = [row for row in rows if len(set(row["ranks"])) > 1]
    if not told_apart:
        raise DataError(
            f"{folder}: of {len(rows)} prompts none has answers of different ranks, so there is nothing to learn."
        )
    write_text_atomic(folder / RANKED, as_lines(told_apart))
    result = {"prompts": len(rows), "uncompared": len(rows) - len(told_apart), **how_right(place, labelled_in(folder))}
    place.progress.say(
        f"{place.named('label')}: the reward model that the policy learned from orders {rate(result['accuracy'])} of "
        f"{result['pairs']} fresh pairs rightly"
    )
    return result


def answered(place: Workplace) -> list[dict[str, Any]]:
    """A record for each drawn prompt, with its different answers and their ranks: null where people are to write them."""
    config, ppo = place.recipe.rounds, place.recipe.ppo
    every = askable(place)
    prompts = [every[i] for i in shuffled(len(every), place.recipe.seed, place.round)[: config.prompts]]
    policy = place.at(place.round - 1).folder("ppo")
    engine = place.engine(policy, temperature=ppo.temperature)
    place.add(engine, "policy", policy)
    key = ("round", place.recipe.seed, place.round)
    params = SamplingParams(config.num_generations, ppo.temperature, ppo.response_length, key)
    completions = [c for c in answers_in_order(engine, "policy", prompts, params) if c.text.strip()]
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
    rows = [row(list(group.values()), config.label) for group in groups.values() if len(group) > 1]
    if not rows:
        raise DataError(
            f"{policy} gives each of {len(prompts)} prompts one and the same answer, so there is nothing to rank: its KL to the "
            "SFT model is too large. A higher ppo.kl_coef or a lower ppo.learning_rate keeps it nearer."
        )
    return rows


def askable(place: Workplace) -> list[Prompt]:
    """PPO's prompts without those that begin like one that measures the reward model or teaches the judge. Raises `DataError`
    where none is left."""
    held_out = {prompt_hash(begun(ranking.prompt.messages)) for ranking in place.rankings.held_out}
    prompts = [prompt for prompt in place.prompts.records if prompt_hash(begun(prompt.messages)) not in held_out]
    if not prompts:
        raise DataError(
            f"{place.prompts.path}: all {len(place.prompts.records)} prompts are held out from the reward model, so none can be "
            "ranked in a round. Give ppo.train_file other prompts than reward.train_file."
        )
    return prompts


def row(answers: Sequence[tuple[Completion, float | None]], label: str) -> dict[str, Any]:
    """One ranking as a record; ranks are places among the scores, equal scores are ties."""
    prompt, scores = answers[0][0].prompt, [score for _, score in answers]
    known = [score for score in scores if score is not None]
    return {
        "id": prompt.id,
        "category": prompt.category,
        "prompt": [message.as_dict() for message in prompt.messages],
        "completions": [completion.text.strip() for completion, _ in answers],
        "ranks": [None if score is None else 1 + sum(other > score for other in known) for score in scores],
        "source": label,
    }


def to_rank(place: Workplace) -> Path:
    """Where people rank. It lies beside the stages and is named by what it asks, so that no change of the recipe throws their
    work away, and a change back finds it again."""
    rounds, ppo = place.recipe.rounds, place.recipe.ppo
    policy = place.model_id(place.at(place.round - 1).folder("ppo"))
    drawn = (place.recipe.seed, rounds.prompts, rounds.num_generations, ppo.temperature, ppo.response_length)
    asked = sha256_json([policy, place.prompts.sha256, *drawn])[:6]
    return place.run.path / f"{place.named('to_rank')}-{asked}.jsonl"


def ranked_by_people(place: Workplace) -> list[dict[str, Any]]:
    """The records of `to_rank` with the ranks that people wrote; the answers are sampled and written there first. Records that
    begin like what is held out by now, in another split than that in which they were asked, are passed over.

    Raises `Interrupted` where they have written none, `DataError` where only some are ranked, or by something else than a number
    for each answer.
    """
    file = to_rank(place)
    if not file.exists():
        write_text_atomic(file, as_lines(answered(place)))
    source = read_source(file)
    rows = [row.value if isinstance(row.value, dict) else {} for row in source.rows]
    ranks = [rank for row in rows if isinstance(row.get("ranks"), list) for rank in row["ranks"]]
    if ranks and all(rank is None for rank in ranks):
        raise Interrupted(
            f"{len(rows)} prompts with their answers wait for people in {file}: write into each record's ranks 1 for the best "
            "answer, 2 for the next, and equal numbers for a tie"
        )
    if wrong := [
        row.line for row, record in zip(source.rows, rows, strict=True) if row.problem or not is_ranked(record)
    ]:
        raise DataError(
            f"{file}: {len(wrong)} of {len(rows)} records are not ranked (line {', '.join(map(str, wrong[:5]))}): expected ranks "
            "with a whole number from 1 for each answer. Take out a record that nobody can rank."
        )
    asked = {prompt.id for prompt in askable(place)}
    kept = [row for row in rows if row.get("id") in asked]
    if len(kept) < len(rows):
        place.progress.say(
            f"{len(rows) - len(kept)} of {len(rows)} records of {file} are held out by now and passed over"
        )
    return kept


def is_ranked(record: Mapping[str, Any]) -> bool:
    ranks, answers = record.get("ranks"), record.get("completions")
    if not isinstance(ranks, list) or not isinstance(answers, list) or len(ranks) != len(answers):
        return False
    return all(type(rank) is int and rank >= 1 for rank in ranks)


def how_right(place: Workplace, rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Accuracy of the round before's reward model on fresh pairs."""
    engine = reward_engine(place, place.at(place.round - 1).reward_model)
    with engine.hold(render(engine.chat, rankings)[0]) as held:
        accuracy = trust.accuracy(engine, "reward", held, rankings)
    return {"pairs": len(strict_pairs(rankings)[0]), "accuracy": accuracy.as_dict()}
