"""The evaluation of a run, or of any models: who answers, and who compares the answers.

Models of the run's vocabulary share one engine. Those of another have an engine each, and those behind an address none; the
lengths of all answers are counted in the tokens of one tokenizer, the reward model's that compares them if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from whelp.addresses import address_of, is_address, opened
from whelp.config import Recipe
from whelp.endpoints.model import EndpointModel
from whelp.engines.base import Engine, SamplingParams
from whelp.errors import ConfigError
from whelp.job import data_input, settings
from whelp.judges.endpoint import EndpointJudge
from whelp.judges.people import PeopleJudge
from whelp.judges.trust import known_pairs
from whelp.models.loading import has_vocabulary
from whelp.models.sources import resolve
from whelp.runs.files import read_json, sha256_json
from whelp.runs.manifest import DONE, Run
from whelp.scorers import members_in
from whelp.splits import has_judge, refuse_own_judge, refuse_trained
from whelp.stages import evaluate
from whelp.stages.context import Samples
from whelp.stages.evaluate.preferences import PRINCIPLE, Asked
from whelp.text.chat import Chat
from whelp.text.formats import read_prompts, read_rankings
from whelp.types import Completion, Prompt
from whelp.workplace import Input, Workplace

BRIEF = "builtin:brief"
RANKED = ("reward", "labeller", "dpo")
"""Stages that learn from rankings."""


def chosen(place: Workplace) -> dict[str, Any]:
    """How fast an endpoint may be asked, and for how much, changes nothing in what it says."""
    found = settings("evaluate")(place)
    for name in ("concurrency", "price_in", "price_out", "max_cost"):
        found["evaluate"].pop(name)
    return found


def inputs(place: Workplace) -> dict[str, Input]:
    found = {name: place.model_input(folder) for name, folder in place.compared.items()}
    found |= {name: _input_of(source) for name, source in _elsewhere(place).items()}
    found["prompts"] = data_input(place.evaluation)
    judge = judge_folder(place)
    if judge is not None:
        found["judge"] = place.model_input(judge)
    for source in place.recipe.evaluate.judges:
        if is_address(source):
            found[f"judge {source}"] = _input_of(source)
        elif is_people(source):
            found[f"judge {source}"] = data_input(read_rankings(source))
    return found


def _input_of(address: str) -> Input:
    """By its name alone: what the model behind it is made of is not known."""
    return Input(address, sha256_json([*map(str, address_of(address))]))


def _elsewhere(place: Workplace) -> dict[str, str]:
    """The models to compare that are behind an address."""
    return {name: source for name, source in place.models.items() if is_address(source)}


def is_people(judge: str) -> bool:
    """Whether a judge is what people said."""
    return judge.startswith("db:") or Path(judge).is_file()


def reward_judge(recipe: Recipe) -> str | None:
    """The reward model among the judges. Raises `ConfigError` where there are two."""
    named = [judge for judge in recipe.evaluate.judges if not is_address(judge) and not is_people(judge)]
    if len(named) > 1:
        raise ConfigError(
            f"evaluate.judges names {len(named)} reward models: {', '.join(named)}; expected one at most."
        )
    return named[0] if named else None


def judge_folder(place: Workplace) -> Path | None:
    """The reward model that compares: the one named, else the run's own judge."""
    if named := reward_judge(place.recipe):
        return resolve(named, place.progress.say)
    folder, wanted = place.run.stage_dir("judge"), place.recipe.evaluate.judge
    return folder if has_judge(place.recipe) or (wanted and not place.models and (folder / DONE).exists()) else None


def refuse_circular(place: Workplace) -> None:
    """Raises `DataError` where a reward model that is named as a judge learned from what trained the models that it judges."""
    named = reward_judge(place.recipe)
    if named is None:
        return
    folder = resolve(named, place.progress.say).resolve()
    runs = {place.run.path.resolve(), *(model.resolve().parent for model in place.compared.values())}
    taught = set[str]().union(*(place.training_prompts(stage) for stage in RANKED if stage in place.recipe.stages))
    for run in runs:
        taught |= Run(run).training_prompts(*RANKED)
        for read in Run(run).manifest().get("inputs", {}).values():
            if "reward" in read:
                reward = Path(read["reward"]["path"])
                taught |= Run(reward.parent).training_prompts(reward.name)
    refuse_own_judge(named, Run(folder.parent).training_prompts(folder.name), taught)


def work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.evaluate
    place.tell(place.evaluation)
    prompts = place.evaluation.records
    runs = [place.run, *(Run(folder.resolve().parent) for folder in place.compared.values())]
    refuse_trained(set[str]().union(*(run.training_prompts() for run in runs)), prompts)
    folder = judge_folder(place)
    first = folder or next(iter(place.compared.values()), place.base)
    engine, judge = place.engine(first, temperature=config.temperature), None
    if folder is not None:
        place.add(engine, "judge", folder, head="scalar", members=members_in(folder))
        measured = read_json(folder / "metrics.json")
        judge = measured if measured.get("n") else None
        if judge is None:
            place.progress.warn(f"nothing is known of how often {folder} is right on held-out pairs: it is not counted")
    shown = read_prompts(BRIEF).records if config.prompts.startswith("builtin:") and config.prompts != BRIEF else ()
    models = list(place.models or place.compared)
    with ExitStack() as stack:
        elsewhere = _others(place, engine, stack)
        asked = _asked(place, stack)
        stage = place.stage("evaluate")
        return evaluate.run(engine, engine.chat, models, prompts, shown, config, stage, judge, elsewhere, asked)


def _others(place: Workplace, engine: Engine, stack: ExitStack) -> dict[str, Samples]:
    """What answers for the models that `engine` cannot have; the others are added to it."""
    found: dict[str, Samples] = {}
    for name, folder in place.compared.items():
        if has_vocabulary(engine.chat.tokenizer, folder):
            engine.add(name, place.spec(folder))
        else:
            other = place.engine(folder, temperature=place.recipe.evaluate.temperature)
            other.add(name, place.spec(folder))
            found[name] = OtherVocabulary(other, engine.chat)
    for name, source in _elsewhere(place).items():
        endpoint = stack.enter_context(opened(address_of(source), place.recipe.evaluate))
        found[name] = EndpointModel(endpoint, engine.chat)
    return found


class OtherVocabulary:
    """An engine whose answers are counted in the tokens of another tokenizer, in which nobody sampled them: log-probabilities are
    NaN."""

    def __init__(self, engine: Engine, chat: Chat):
        self.engine, self.chat = engine, chat

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        for one in self.engine.sample(model, prompts, params):
            tokens = self.chat.answer_tokens(one.prompt, one.text, one.is_finished)
            yield replace(one, tokens=tokens, logprobs=(math.nan,) * len(tokens))


def _asked(place: Workplace, stack: ExitStack) -> list[Asked]:
    """Who compares answers in pairs."""
    config, found = place.recipe.evaluate, []
    for source in config.judges:
        if is_address(source):
            judge = EndpointJudge(stack.enter_context(opened(address_of(source), config)), votes=config.votes)
            known = known_pairs(place.rankings.held_out, [PRINCIPLE], place.recipe.seed, config.trust_pairs)
            found.append(Asked(judge, known))
        elif is_people(source):
            found.append(Asked(PeopleJudge(read_rankings(source).records, source), None))
    return found
