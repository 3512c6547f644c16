"""Constitutional AI in a run: who revises, who judges, and what is learned from both (Bai et al. 2022).

The helpful model answers prompts that tempt it to harm, criticises and revises its answers (`revise`), and the base model learns
from the revisions beside what people wrote (`sft-revised`). That model answers anew, a judge compares every two of its answers
(`feedback`), and the reward model learns from its labels beside what people ranked. `labeller` is a reward model that learns from
people's rankings alone: it sifts the revisions, and is the judge where `constitution.judge` is reward.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from whelp.addresses import Address, opened
from whelp.config import ConstitutionConfig, Recipe
from whelp.engines.base import SamplingParams
from whelp.errors import DataError, TrainingError
from whelp.job import data_input, file_input, rankings_inputs, settings, sft_inputs
from whelp.judges import trust
from whelp.judges.base import Judge
from whelp.judges.endpoint import EndpointJudge
from whelp.judges.local import LocalJudge, RewardJudge, Way, examples_of
from whelp.maths.stats import clustered_bootstrap, clusters_of
from whelp.models.sources import resolve
from whelp.progress import SilentProgress
from whelp.runs.files import as_lines, read_json, write_json_atomic, write_text_atomic
from whelp.runs.manifest import Run
from whelp.scorers import reward_engine, text_scorer
from whelp.splits import split_demonstrations
from whelp.stages.constitution import feedback, revision
from whelp.stages.context import Stage
from whelp.stages.hearing import hear
from whelp.text.formats import read_demonstrations, read_rankings, read_source
from whelp.training import train_reward_model, train_sft
from whelp.types import Demonstration, Message, Prompt, Ranking
from whelp.workplace import REVISED, Input, Workplace

DEMONSTRATIONS, PREFERENCES, KNOWN, TRUST = "demonstrations.jsonl", "rankings.jsonl", "known.jsonl", "trust.json"
HARM = "harm"
"""What the categories of prompts that tempt to harm begin with."""


def wrote(config: ConstitutionConfig, records: Sequence[Demonstration]) -> list[Demonstration]:
    """Of people's demonstrations those that are learned from."""
    return [one for one in records if not leaves_harm(config) or not one.category.startswith(HARM)]


def ranked(config: ConstitutionConfig, records: Sequence[Ranking]) -> list[Ranking]:
    """Of people's rankings those that the reward model learns from beside a judge's labels."""
    kept = [one for one in records if not leaves_harm(config) or not one.prompt.category.startswith(HARM)]
    return [] if config.human == "none" else kept


def leaves_harm(config: ConstitutionConfig) -> bool:
    """Whether harm is the constitution's part."""
    return config.human != "all"


# -- labeller ---------------------------------------------------------------------------------------------------------


def labeller_inputs(place: Workplace) -> dict[str, Input]:
    return {"model": place.model_input(place.helpful)} | rankings_inputs(place)


def labeller_work(place: Workplace) -> dict[str, Any]:
    """As the reward model, from people's rankings alone."""
    split = place.rankings
    place.tell(split.loaded)
    return train_reward_model(place, "labeller", place.helpful, split.train, split.held_out)


# -- critique and revision --------------------------------------------------------------------------------------------


def red_team_inputs(place: Workplace) -> dict[str, Input]:
    config = place.recipe.constitution
    source = read_source(config.principles)
    return {"prompts": data_input(place.red_team), "principles": Input(source.name, source.sha256)}


def revise_settings(place: Workplace) -> dict[str, Any]:
    chosen = settings("constitution")(place)
    names = ("values", "rounds", "temperature", "max_new_tokens", "filter")
    return chosen | {"constitution": {name: chosen["constitution"][name] for name in names}}


def revise_inputs(place: Workplace) -> dict[str, Input]:
    inputs = {"model": place.model_input(place.helpful)} | red_team_inputs(place)
    if place.recipe.constitution.filter:
        inputs["labeller"] = place.model_input(place.run.stage_dir("labeller"))
    return inputs


def revise_work(place: Workplace) -> dict[str, Any]:
    """Raises `DataError` where no revision can be used."""
    config, stage, principles = place.recipe.constitution, place.stage("revise"), place.principles
    place.tell(place.red_team)
    place.record_prompts("revise", place.helpful)
    place.progress.say(f"{place.helpful} revises its answers by {len(principles)} principles of {config.principles}")
    engine = place.engine(place.helpful, temperature=config.temperature)
    place.add(engine, "policy", place.helpful)
    written = revision.write(engine, place.red_team.records, principles, config, stage)
    fates = revision.sift(written, _quality(place) if config.filter else None)
    kept = fates["kept"]
    if not kept:
        counts = ", ".join(f"{len(chains)} {fate}" for fate, chains in fates.items() if chains)
        raise DataError(
            f"none of {len(written)} revisions can be learned from ({counts}). Longer answers (constitution.max_new_tokens), "
            "another constitution or a stronger model may help; chains.jsonl has every step."
        )
    write_text_atomic(stage.folder / DEMONSTRATIONS, as_lines(revision.demonstration(chain) for chain in kept))
    place.progress.say(f"{len(kept)} of {len(written)} revisions are kept; chains.jsonl has every step")
    return {
        "prompts": len(written),
        "rounds": config.rounds,
        "fates": {fate: len(chains) for fate, chains in fates.items()},
        "principles": [principle.id for principle in principles],
    }


def _quality(place: Workplace) -> revision.Quality:
    """Scores of the labeller, which learned from the training's share of people's rankings and never from the evaluation's."""
    score = text_scorer(place, place.run.stage_dir("labeller"))
    return lambda rows: score(rows).mean(0).tolist()


def revised_settings(place: Workplace) -> dict[str, Any]:
    return settings("sft")(place) | {"constitution": {"leaves_harm": leaves_harm(place.recipe.constitution)}}


def revised_inputs(place: Workplace) -> dict[str, Input]:
    revisions = place.run.stage_dir("revise") / DEMONSTRATIONS
    return sft_inputs(place) | {"revisions": file_input(revisions)}


def revised_work(place: Workplace) -> dict[str, Any]:
    train, held_out = split_demonstrations(place.demonstrations, place.recipe.sft.test_fraction)
    return train_sft(place, REVISED, [*wrote(place.recipe.constitution, train), *revised(place)], held_out)


def revised(place: Workplace) -> Sequence[Demonstration]:
    """The revisions that are learned from."""
    return read_demonstrations(place.run.stage_dir("revise") / DEMONSTRATIONS).records


def tried(recipe: Recipe, text: str, principle: str | None) -> Iterator[tuple[str, str]]:
    """(what it is, text) of every step of one prompt's chain; `principle` is the id of the one to use, None: they are drawn.

    Raises `DataError` where there is no such principle.
    """
    place = Workplace(recipe, Run(Path(recipe.output_dir)), SilentProgress())
    principles = [one for one in place.principles if principle in (None, one.id)]
    if not principles:
        known = ", ".join(one.id for one in place.principles)
        raise DataError(f"{recipe.constitution.principles} has no principle {principle!r}; it has {known}.")
    engine = place.engine(place.base, temperature=recipe.constitution.temperature)
    place.add(engine, "policy", place.base)
    asked = Prompt("prompt-0", (Message("user", text),))
    [chain] = revision.chains(engine, [asked], principles, recipe.constitution, recipe.seed)
    yield "answer", chain.answer
    words = {one.id: one.principle for one in principles}
    for number, one in enumerate(chain.rounds, 1):
        yield f"principle {number}: {one.principle}", words[one.principle]
        yield f"critique {number}", one.critique
        yield f"revision {number}", one.revision


# -- AI feedback ------------------------------------------------------------------------------------------------------


def feedback_settings(place: Workplace) -> dict[str, Any]:
    """How fast an endpoint may be asked, and for how much, changes nothing in what it says."""
    chosen = settings("constitution")(place)
    for name in ("rounds", "filter", "human", "concurrency", "price_in", "price_out", "max_cost"):
        chosen["constitution"].pop(name)
    return chosen


def feedback_inputs(place: Workplace) -> dict[str, Input]:
    config = place.recipe.constitution
    inputs = {"policy": place.model_input(place.policy)} | red_team_inputs(place) | rankings_inputs(place)
    if config.judge == "reward":
        inputs["judge"] = place.model_input(place.run.stage_dir("labeller"))
    elif config.judge != "endpoint":
        inputs["judge"] = place.model_input(asked_model(place))
    return inputs


def feedback_work(place: Workplace) -> dict[str, Any]:
    """Raises `TrainingError` where the judge is not to be trusted and the recipe does not allow that."""
    stage = place.stage("feedback")
    place.tell(place.red_team)
    place.record_prompts("feedback", place.policy)
    with judge_of(place) as judge:
        return _feedback(place, judge, stage)


def _feedback(place: Workplace, judge: Judge, stage: Stage) -> dict[str, Any]:
    config = place.recipe.constitution
    found = measured(place, judge, stage)
    engine = place.engine(place.policy, temperature=config.temperature)
    place.add(engine, "policy", place.policy)
    answers = feedback.answer(engine, place.red_team.records, config, stage)
    asked = feedback.pairs(place.red_team.records, answers, place.principles, config, place.recipe.seed)
    if not asked:
        raise DataError(
            f"{place.policy} gives each of {len(answers)} prompts one and the same answer, so there is nothing to compare. A "
            "higher constitution.temperature makes its answers differ."
        )
    started = time.perf_counter()
    labelled = feedback.label(judge, asked, config, stage)
    seconds = time.perf_counter() - started
    temperature = found.temperature if config.calibrate else 1.0
    rows = list(feedback.preferences(labelled, temperature, judge.name))
    if not rows:
        raise DataError(
            f"{judge.name} said nothing that can be read of {len(asked)} pairs; {stage.folder} has what it said."
        )
    write_text_atomic(stage.folder / PREFERENCES, as_lines(rows))
    said = [(one.pair.prompt.id, label) for one in labelled for label in one.labels if label is not None]
    bias = torch.tensor([label.position_bias for _, label in said], dtype=torch.float64)
    return {
        "judge": judge.name,
        "trust": found.as_dict(),
        "verdict": found.verdict(judge.name),
        "trusted": found.is_trusted,
        "temperature": temperature,
        "prompts": len(answers),
        "pairs": len(asked),
        "labels": len(rows),
        "unread": sum(label is None for one in labelled for label in one.labels),
        "sureness": sum(row["probability"] for row in rows) / len(rows),
        "position_bias": clustered_bootstrap(bias, clusters_of([id for id, _ in said])).as_dict(),
        "cost": sum(opinion.cost for _, label in said for opinion in label.opinions),
        "seconds": seconds,
        "labels_per_hour": 3600 * len(rows) / seconds,
    }


@contextmanager
def judge_of(place: Workplace) -> Iterator[Judge]:
    """Who compares, as the recipe says."""
    config = place.recipe.constitution
    match config.judge:
        case "reward":
            folder = place.run.stage_dir("labeller")
            engine = reward_engine(place, folder)
            gain = read_json(folder / "config.json").get("reward_gain", 1.0)
            yield RewardJudge(engine, engine.chat, "reward", gain, is_conditioned=True)
        case "endpoint":
            with endpoint_judge(config) as judge:
                yield judge
        case way:
            yield local_judge(place, "thought" if config.thinking else way)


def asked_model(place: Workplace) -> Path:
    """The language model that judges here."""
    named = place.recipe.constitution.judge_model
    return resolve(named, place.progress.say) if named else place.base


def local_judge(place: Workplace, way: Way) -> LocalJudge:
    """The recipe's language model as a judge, with examples from people's training rankings."""
    config, folder = place.recipe.constitution, asked_model(place)
    engine, name = place.engine(folder), folder.name
    place.add(engine, name, folder)
    alike = _alike(place.rankings.train, place.red_team.records)
    shown = examples_of(alike, place.principles, way, config.examples)
    thinking = SamplingParams(1, 0.0, config.max_new_tokens, ("thought", place.recipe.seed))
    return LocalJudge(engine, engine.chat, name, way, shown, thinking)


def measured(place: Workplace, judge: Judge, stage: Stage) -> trust.Trust:
    """What the judge is worth on people's held-out rankings of prompts like those that it is to label. Raises `TrainingError`
    where it is not to be trusted and the recipe does not allow that."""
    config = place.recipe.constitution
    rankings = _alike(place.rankings.held_out, place.red_team.records)
    known = trust.known_pairs(rankings, place.principles, place.recipe.seed, config.trust_pairs)
    heard = hear(judge, [one.comparison for one in known], stage, KNOWN, feedback.bounds(config))
    found = trust.measure(known, heard)
    write_json_atomic(stage.folder / TRUST, {"judge": judge.name, **found.as_dict()})
    verdict = found.verdict(judge.name)
    if found.is_trusted:
        place.progress.say(verdict)
    elif config.allow_untrusted_labels:
        place.progress.warn(f"{verdict} Its labels are used all the same: constitution.allow_untrusted_labels is set.")
    else:
        raise TrainingError(
            f"{verdict} Its labels are not used. A stronger judge is one setting away (constitution.judge=endpoint, or another "
            "judge_model); constitution.judge=reward learns from people's rankings; --allow_untrusted_labels uses them anyway."
        )
    return found


def _alike(rankings: Sequence[Ranking], prompts: Sequence[Prompt]) -> Sequence[Ranking]:
    """Rankings of prompts of the categories that are to be labelled; all where people ranked none of those."""
    categories = {prompt.category for prompt in prompts}
    return [ranking for ranking in rankings if ranking.prompt.category in categories] or rankings


def labelled(place: Workplace) -> Sequence[Ranking]:
    """The judge's labels, to learn from."""
    return read_rankings(place.run.stage_dir("feedback") / PREFERENCES).records if place.has_feedback else ()


@contextmanager
def endpoint_judge(config: ConstitutionConfig) -> Iterator[EndpointJudge]:
    """The recipe's model behind an endpoint."""
    with opened(Address(config.provider, config.endpoint, str(config.judge_model)), config) as endpoint:
        yield EndpointJudge(endpoint, config.thinking, config.votes)
