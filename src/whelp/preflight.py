"""What can be found wrong before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from whelp import evaluation
from whelp.addresses import address_of, is_address, opened
from whelp.audit import probes_of
from whelp.config import Recipe
from whelp.constitution import endpoint_judge
from whelp.errors import ConfigError, DataError, RunError
from whelp.models.loading import context_of, refuse_language_model
from whelp.models.sources import resolve
from whelp.rewards.compose import load_function
from whelp.rewards.formula import functions
from whelp.rewards.rules import refuse_unchecked
from whelp.runs.files import nearest_existing, read_json
from whelp.runs.manifest import DONE
from whelp.runs.tracking import refuse_missing
from whelp.splits import has_judge, refuse_trained
from whelp.text.chat import Chat
from whelp.types import Message, Principle, Prompt
from whelp.workplace import Workplace


def check(place: Workplace, is_plan: bool = False) -> None:
    """All that can be checked before the run's folder is touched. Raises what the three below raise, `RunError` where a file is
    in its place, and `ConfigError` where a tracker is not installed or a judge behind an endpoint cannot be asked. A plan needs
    no permission to run code, and without it runs none."""
    folder = nearest_existing(place.run.path)
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, so no run can be kept in {place.run.path}. Give another --output_dir.")
    refuse_missing(place.recipe.report_to)
    refuse_unmade(place)
    if place.allow_code or not is_plan:
        check_code(place)
    if not is_plan and "feedback" in place.recipe.stages and place.recipe.constitution.judge == "endpoint":
        with endpoint_judge(place.recipe.constitution) as judge:
            judge.endpoint.ready()
    if not is_plan and "evaluate" in place.recipe.stages:
        for source in filter(is_address, [*place.models.values(), *place.recipe.evaluate.judges]):
            with opened(address_of(source), place.recipe.evaluate) as endpoint:
                endpoint.ready()
    if "evaluate" in place.recipe.stages:
        evaluation.refuse_circular(place)
    check_data(place)


def refuse_unmade(place: Workplace) -> None:
    """Raises `ConfigError` where PPO wants the run's reward model and there is none, `ModelError` where a reward model that is
    named is not there or is none."""
    recipe = place.recipe
    named = {"ppo.reward": recipe.ppo.reward_model, "rounds.label": recipe.rounds.label_model}
    models = [named[setting] for setting, rewards in scored_by(recipe).items() if "model" in rewards]
    opinion = recipe.ppo.second_opinion if "ppo" in recipe.stages else None
    if opinion == "judge":
        if not has_judge(recipe) and not read_json(place.run.stage_dir("judge") / DONE):
            raise ConfigError(
                "ppo.second_opinion is judge, and this run has none: it is trained where a reward model or DPO leaves it "
                "rankings (evaluate.judge). Name a reward model's folder instead."
            )
        opinion = None
    for model in filter(None, [*models, evaluation.reward_judge(recipe), opinion]):
        refuse_language_model(resolve(model, place.progress.say))
    if "audit" in recipe.stages:
        models.append(recipe.audit.reward_model or recipe.ppo.reward_model)
        if models[-1]:
            refuse_language_model(resolve(models[-1], place.progress.say))
    if not all(models) and "reward" not in recipe.stages and not read_json(place.run.stage_dir("reward") / DONE):
        asks = "ppo" if "ppo" in recipe.stages else "audit"
        raise ConfigError(
            f"{asks} needs a reward model: add reward to the stages, give --reward_model, or run whelp reward into "
            f"{place.run.path}."
        )


def check_code(place: Workplace) -> None:
    """Raises `ConfigError` where the recipe names Python functions and the user did not allow code, `DataError` where one of them
    cannot be loaded."""
    named = {setting: functions(rewards) for setting, rewards in scored_by(place.recipe).items()}
    if "audit" in place.recipe.stages:
        named["audit.probes"] = [*place.recipe.audit.probes]
    for setting, code in named.items():
        if code and not place.allow_code:
            raise ConfigError(
                f"{setting} names Python code, which runs with your rights: {', '.join(code)}. Read it, then give --allow_code."
            )
        if setting == "audit.probes":
            probes_of(code)
        else:
            for name in code:
                load_function(name)


def scored_by(recipe: Recipe) -> dict[str, Mapping[str, float]]:
    """What scores answers in this run, by the setting that names it."""
    if "ppo" not in recipe.stages:
        return {}
    return {"ppo.reward": recipe.ppo.rewards} | ({"rounds.label": recipe.rounds.labels} if recipe.rounds.n else {})


def check_data(place: Workplace) -> None:
    """Read all data of the run before anything is spent on it.

    Raises `DataError` for a file that cannot be used, a split without one of its sides, a prompt that is too long or lacks the
    check that scores it, and an evaluation prompt that trains.
    """
    recipe = place.recipe
    names = [*recipe.stages, *(["judge"] if has_judge(recipe) else [])]
    trained = set[str]().union(*(place.training_prompts(name) for name in names))
    if "ppo" in names:
        prompts = place.prompts.records
        for setting, rewards in scored_by(recipe).items():
            if "checker" in rewards:
                refuse_unchecked(prompts, setting)
        refuse_long(place.chat(place.base), place.base, prompts, recipe.ppo.response_length)
    if {"revise", "feedback"} & set(names):
        longest = max(place.principles, key=lambda one: len(one.critique + one.revision))
        asked = [revised_under(prompt, longest) for prompt in place.red_team.records]
        refuse_long(place.chat(place.base), place.base, asked, 3 * recipe.constitution.max_new_tokens)
    if "evaluate" in names:
        prompts, model = place.evaluation.records, next(iter(place.compared.values()), place.base)
        refuse_trained(trained, prompts)
        refuse_long(place.chat(model), model, prompts, recipe.evaluate.max_new_tokens)


def revised_under(prompt: Prompt, principle: Principle) -> Prompt:
    """All that is asked of a model that revises its answer, but for what it says itself."""
    said = (Message("assistant", ""), Message("user", principle.critique), Message("assistant", ""))
    return replace(prompt, messages=(*prompt.messages, *said, Message("user", principle.revision)))


def refuse_long(chat: Chat, model: Path, prompts: Sequence[Prompt], room: int) -> None:
    """Raises `DataError` naming the prompts that leave no room for an answer of `room` tokens in the model's context."""
    context = context_of(model)
    if context is None:
        return
    long = [(p.id, n) for p in prompts if (n := len(chat.prompt(p))) + room > context]
    if long:
        raise DataError(
            f"{len(long)} prompts leave no room for {room} new tokens in the model's context of {context} (for example "
            f"{', '.join(f'{name}: {n} tokens' for name, n in long[:5])}). Shorten them or the answers."
        )
