"""What each stage of a run needs: its models, its data, and what its result depends on.

The stages themselves know no files and no engine; here they meet both.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from whelp import audit, constitution, evaluation, rounds
from whelp.config import Recipe
from whelp.job import Job, code_inputs, data_input, file_input, rankings_inputs, settings, sft_inputs
from whelp.models.sources import resolve
from whelp.runs.manifest import fingerprint_parts
from whelp.scorers import critic, opinion_folder, scorer, second_opinion, where_trusted
from whelp.splits import has_judge, split_demonstrations
from whelp.stages import dpo, on_policy, ppo
from whelp.stages.best import FOLDER
from whelp.text.formats import with_one_id
from whelp.training import export, optimizer, ppo_optimizer, say_notes, tell_truncated, train_reward_model, train_sft
from whelp.workplace import REVISED, Input, Workplace

JUDGE_SEED = 1_000
JUDGE_EPOCHS = 2
"""Times the reward model's: the judge starts from the raw model, which prefers that harm is helped."""


# -- sft --------------------------------------------------------------------------------------------------------------


def sft_settings(place: Workplace) -> dict[str, Any]:
    """The helpful model is to have learned no more from people than what learns from its revisions."""
    return constitution.revised_settings(place) if "revise" in place.recipe.stages else settings("sft")(place)


def sft_work(place: Workplace) -> dict[str, Any]:
    train, held_out = split_demonstrations(place.demonstrations, place.recipe.sft.test_fraction)
    if "revise" in place.recipe.stages:
        train = constitution.wrote(place.recipe.constitution, train)
    return train_sft(place, "sft", train, held_out)


# -- reward and judge -------------------------------------------------------------------------------------------------


def reward_source(place: Workplace) -> Path:
    named = place.recipe.reward.model
    return resolve(named, place.progress.say) if named else place.policy


def reward_settings(place: Workplace) -> dict[str, Any]:
    """Its unit is the spread of the policy's samples as PPO will draw them."""
    chosen = settings("reward")(place)
    if place.has_feedback:
        chosen["constitution"] = {"human": place.recipe.constitution.human}
    if place.policy != place.base:
        chosen["ppo"] = {name: getattr(place.recipe.ppo, name) for name in ("temperature", "response_length")}
    return chosen


def reward_inputs(place: Workplace) -> dict[str, Input]:
    inputs = {"model": place.model_input(reward_source(place))} | rankings_inputs(place)
    if place.policy != place.base:
        inputs |= {"policy": place.model_input(place.policy), "demonstrations": data_input(place.demonstrations)}
    if place.has_feedback:
        inputs["feedback"] = file_input(place.run.stage_dir("feedback") / constitution.PREFERENCES)
    return inputs | {folder.name: file_input(folder / rounds.RANKED) for folder in rounds.folders(place)}


def reward_work(place: Workplace) -> dict[str, Any]:
    split = place.rankings
    place.tell(split.loaded)
    if split.test is not None:
        place.tell(split.test)
    place.progress.say(f"the reward model starts from {reward_source(place)}")
    people, judged = split.train, constitution.labelled(place)
    if judged:
        people = constitution.ranked(place.recipe.constitution, people)
        place.progress.say(f"it learns from {len(people)} rankings by people and {len(judged)} labels of a judge")
    train = with_one_id([*people, *judged, *rounds.labelled(place)])
    return train_reward_model(place, place.named("reward"), reward_source(place), train, split.held_out)


def judge_settings(place: Workplace) -> dict[str, Any]:
    chosen = settings("reward")(place)
    chosen["reward"]["num_train_epochs"] *= JUDGE_EPOCHS
    return chosen


def judge_inputs(place: Workplace) -> dict[str, Input]:
    return {"model": place.model_input(place.base)} | rankings_inputs(place)


def judge_work(place: Workplace) -> dict[str, Any]:
    split = place.rankings
    return train_reward_model(place, "judge", place.base, split.held_out, split.train, JUDGE_SEED, JUDGE_EPOCHS)


# -- ppo --------------------------------------------------------------------------------------------------------------


def ppo_inputs(place: Workplace) -> dict[str, Input]:
    config = place.recipe.ppo
    inputs = {"model": place.model_input(place.policy), "prompts": data_input(place.prompts)}
    if "model" in config.rewards:
        inputs["reward"] = place.model_input(place.reward_model)
    inputs |= code_inputs(config.rewards)
    if config.second_opinion is not None:
        inputs["second_opinion"] = place.model_input(opinion_folder(place))
    if config.ptx_coef:
        inputs["demonstrations"] = data_input(place.demonstrations)
    return inputs


def ppo_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.ppo
    place.tell(place.prompts)
    place.record_prompts(place.named("ppo"), place.policy, *([place.reward_model] if "model" in config.rewards else []))
    place.progress.say(f"the policy starts from {place.policy}")
    engine = place.engine(place.policy, temperature=config.temperature)
    engine.add("policy", place.spec(place.policy, optimizer=ppo_optimizer(config)))
    engine.add("reference", place.spec(None, copy_of="policy"))
    say_notes(place, engine, "policy")
    score = scorer(place, engine)
    if config.advantage == "gae":
        engine.add("value", critic(place, engine, ppo_optimizer(config)))
    demonstrations = place.demonstrations.records if config.ptx_coef else ()
    prompts = where_trusted(place, place.prompts.records)
    stage, opinion = place.stage(place.named("ppo")), second_opinion(place, engine)
    result = ppo.train(engine, engine.chat, prompts, score, config, stage, demonstrations, opinion)
    if line := on_policy.told(result["on_policy"]):
        place.progress.say(line)
    export(place, engine, "policy", place.named("ppo"))
    return result


# -- online rounds ----------------------------------------------------------------------------------------------------


def rounds_settings(place: Workplace) -> dict[str, Any]:
    """How many rounds follow changes nothing in this one."""
    chosen = settings("rounds")(place)
    chosen["rounds"].pop("n")
    ppo = place.recipe.ppo
    return chosen | {"ppo": {"temperature": ppo.temperature, "response_length": ppo.response_length}}


def rounds_inputs(place: Workplace) -> dict[str, Input]:
    before, config = place.at(place.round - 1), place.recipe.rounds
    inputs = {
        "policy": place.model_input(before.folder("ppo")),
        "reward": place.model_input(before.reward_model),
        "prompts": data_input(place.prompts),
    }
    if not config.labels:
        inputs["ranks"] = file_input(rounds.to_rank(place))
    if config.label_model is not None:
        inputs["label_model"] = place.model_input(resolve(config.label_model, place.progress.say))
    return inputs | code_inputs(config.labels)


# -- dpo --------------------------------------------------------------------------------------------------------------


def dpo_inputs(place: Workplace) -> dict[str, Input]:
    return {"model": place.model_input(place.policy)} | rankings_inputs(place)


def dpo_work(place: Workplace) -> dict[str, Any]:
    config, split = place.recipe.dpo, place.rankings
    place.tell(split.loaded)
    place.progress.say(f"the policy starts from {place.policy}")
    place.record_prompts("dpo", place.policy)
    engine = place.engine(place.policy, config.max_length)
    engine.add("policy", place.spec(place.policy, optimizer=optimizer(config)))
    engine.add("reference", place.spec(None, copy_of="policy"))
    say_notes(place, engine, "policy")
    result = dpo.train(engine, engine.chat, split.train, split.held_out, config, place.stage("dpo"))
    tell_truncated(place, result, "dpo")
    export(place, engine, "policy", "dpo")
    return result


# -- helpers ----------------------------------------------------------------------------------------------------------


def report_work(place: Workplace) -> dict[str, Any]:
    from whelp.report import write_report

    return {"report": str(write_report(place.run.path))}


def parts_of(job: Job, place: Workplace) -> tuple[dict[str, Any], dict[str, Input]]:
    """All that the job's result depends on (see `fingerprint_parts`), and where its inputs lie."""
    place = place.at(job.round)
    inputs = job.inputs(place)
    hashes = {name: read.sha256 for name, read in inputs.items()}
    return fingerprint_parts(job.name, job.settings(place), hashes), inputs


JOBS = {
    "sft": Job("sft", sft_settings, sft_inputs, sft_work, "supervised fine-tuning on ideal answers"),
    "labeller": Job(
        "labeller",
        settings("reward"),
        constitution.labeller_inputs,
        constitution.labeller_work,
        "reward model on people's rankings alone",
    ),
    "revise": Job(
        "revise",
        constitution.revise_settings,
        constitution.revise_inputs,
        constitution.revise_work,
        "its answers, criticised and revised",
    ),
    REVISED: Job(
        REVISED,
        constitution.revised_settings,
        constitution.revised_inputs,
        constitution.revised_work,
        "fine-tuning on the revisions",
    ),
    "feedback": Job(
        "feedback",
        constitution.feedback_settings,
        constitution.feedback_inputs,
        constitution.feedback_work,
        "a judge compares answers",
    ),
    "reward": Job("reward", reward_settings, reward_inputs, reward_work, "reward model on ranked answers"),
    "judge": Job("judge", judge_settings, judge_inputs, judge_work, "judge on the other rankings"),
    "label": Job("label", rounds_settings, rounds_inputs, rounds.work, "the policy's own answers, ranked"),
    "ppo": Job("ppo", settings("ppo"), ppo_inputs, ppo_work, "PPO on a leash to the SFT model"),
    "dpo": Job("dpo", settings("dpo"), dpo_inputs, dpo_work, "direct preference optimisation on ranked answers"),
    "evaluate": Job("evaluate", evaluation.chosen, evaluation.inputs, evaluation.work, "before and after"),
    "audit": Job("audit", settings("audit"), audit.inputs, audit.work, "what the reward model pays for"),
}


def needs_labeller(recipe: Recipe) -> bool:
    """Whether a reward model is to learn from people's rankings alone."""
    sifts = "revise" in recipe.stages and recipe.constitution.filter
    return sifts or ("feedback" in recipe.stages and recipe.constitution.judge == "reward")


def jobs_of(recipe: Recipe) -> list[Job]:
    """The jobs of a recipe in order; a judge is trained beside what learns from the rankings where the evaluation wants one."""
    names = [name for name in recipe.stages if name != "report"]
    if needs_labeller(recipe):
        names.insert(min(names.index(name) for name in ("revise", "feedback") if name in names), "labeller")
    if "revise" in names:
        names.insert(names.index("revise") + 1, REVISED)
    if has_judge(recipe) and "evaluate" in names:
        names.insert(names.index("reward" if "reward" in names else "dpo") + 1, "judge")
    jobs = [JOBS[name] for name in names]
    if "ppo" in names:
        behind, every = 1 + names.index("ppo"), range(1, recipe.rounds.n + 1)
        jobs[behind:behind] = [
            replace(JOBS[name], name=f"{name}-{k}", round=k) for k in every for name in ("label", "reward", "ppo")
        ]
    return jobs


def clear_checkpoints(folder: Path) -> None:
    """A finished stage has its model; the optimizer's state is no longer of use."""
    for checkpoint in (*folder.glob("checkpoint-*"), *folder.glob(FOLDER)):
        shutil.rmtree(checkpoint)
