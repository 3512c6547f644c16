"""What each stage of a run needs: its models, its data, and what its result depends on.

The stages themselves know no files and no engine; here they meet both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from whelp import rounds
from whelp.config import DPOConfig, PPOConfig, Recipe, RewardConfig, SFTConfig
from whelp.engines.base import ModelSpec, OptimizerSpec, SamplingParams
from whelp.engines.local import LocalEngine
from whelp.models.export import class_name
from whelp.models.loading import has_vocabulary
from whelp.models.sources import resolve
from whelp.rewards.formula import functions
from whelp.runs.files import as_run_error, read_json, sha256_file
from whelp.runs.manifest import DONE, Run, fingerprint_parts, kind_of
from whelp.scorers import critic, members_in, scorer, where_trusted
from whelp.splits import has_judge, held_out_fraction, refuse_trained, split_demonstrations
from whelp.stages import controls, dpo, evaluate, on_policy, ppo, reward, sft
from whelp.stages.context import spread
from whelp.text.formats import Loaded, read_prompts, with_one_id
from whelp.types import Ranking
from whelp.workplace import Input, Workplace

JUDGE_SEED = 1_000
JUDGE_EPOCHS = 2
"""Times the reward model's: the judge starts from the raw model, which prefers that harm is helped."""
MEASURED_RANKINGS = 300
"""Of those that a reward model never saw: scoring them all would take as long as the training."""
BRIEF = "builtin:brief"


@dataclass(frozen=True)
class Job:
    """One stage: what it depends on, and what it does in the workplace of its round."""

    name: str
    settings: Callable[[Workplace], dict[str, Any]]
    inputs: Callable[[Workplace], dict[str, Input]]
    """What is read, by name."""
    work: Callable[[Workplace], dict[str, Any]]
    what: str
    round: int = 0


def settings(*sections: str) -> Callable[[Workplace], dict[str, Any]]:
    """Those sections of the recipe, and what every model depends on."""
    common = ("seed", "dtype", "trainable_layers", "system_prompt")

    def read(place: Workplace) -> dict[str, Any]:
        whole = place.recipe.model_dump(mode="json")
        chosen = {name: whole[name] for name in (*common, *sections)}
        chosen.get("ppo", {}).pop("save_steps", None)
        chosen.get("ppo", {}).pop("save_total_limit", None)
        return chosen

    return read


def data_input(loaded: Loaded[Any]) -> Input:
    return Input(loaded.path, loaded.sha256)


def file_input(file: Path) -> Input:
    """One that an earlier stage or people write."""
    return Input(str(file), sha256_file(file) if file.exists() else "not made yet")


# -- sft --------------------------------------------------------------------------------------------------------------


def sft_inputs(place: Workplace) -> dict[str, Input]:
    return {
        "model": place.model_input(place.base),
        "demonstrations": data_input(place.demonstrations),
    }


def sft_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.sft
    place.tell(place.demonstrations)
    train, held_out = split_demonstrations(place.demonstrations, config.test_fraction)
    place.record_prompts("sft", place.base)
    engine = place.engine(place.base, config.max_length)
    layers = place.recipe.sft_layers
    engine.add("policy", place.spec(place.base, trainable_layers=layers, optimizer=optimizer(config)))
    say_notes(place, engine, "policy")
    result = sft.train(engine, engine.chat, train, held_out, config, place.stage("sft"))
    tell_truncated(place, result, "sft")
    export(place, engine, "policy", "sft")
    return result


# -- reward and judge -------------------------------------------------------------------------------------------------


def reward_source(place: Workplace) -> Path:
    named = place.recipe.reward.model
    return resolve(named, place.progress.say) if named else place.policy


def rankings_inputs(place: Workplace) -> dict[str, Input]:
    split = place.rankings
    inputs = {"rankings": data_input(split.loaded)}
    if split.test is not None:
        inputs["test_rankings"] = data_input(split.test)
    else:
        inputs["split"] = Input(
            split.loaded.path, f"{held_out_fraction(place.recipe):g} of the prompts held out, by what is said first"
        )
    if place.recipe.reward.contradictions == "drop":
        inputs["contradictions"] = Input(split.loaded.path, "dropped")
    return inputs


def reward_settings(place: Workplace) -> dict[str, Any]:
    """Its unit is the spread of the policy's samples as PPO will draw them."""
    chosen = settings("reward")(place)
    if place.policy != place.base:
        chosen["ppo"] = {name: getattr(place.recipe.ppo, name) for name in ("temperature", "response_length")}
    return chosen


def reward_inputs(place: Workplace) -> dict[str, Input]:
    inputs = {"model": place.model_input(reward_source(place))} | rankings_inputs(place)
    if place.policy != place.base:
        inputs |= {"policy": place.model_input(place.policy), "demonstrations": data_input(place.demonstrations)}
    return inputs | {folder.name: file_input(folder / rounds.RANKED) for folder in rounds.folders(place)}


def reward_work(place: Workplace) -> dict[str, Any]:
    split = place.rankings
    place.tell(split.loaded)
    if split.test is not None:
        place.tell(split.test)
    place.progress.say(f"the reward model starts from {reward_source(place)}")
    train = with_one_id([*split.train, *rounds.labelled(place)])
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


def train_reward_model(
    place: Workplace,
    name: str,
    source: Path,
    train: Sequence[Ranking],
    held_out: Sequence[Ranking],
    seed_offset: int = 0,
    epochs: int = 1,
) -> dict[str, Any]:
    """`epochs` times the recipe's."""
    config = place.recipe.reward
    config = config.model_copy(update={"num_train_epochs": epochs * config.num_train_epochs})
    place.record_prompts(name, source)
    engine = place.engine(source, config.max_length)
    seed = place.recipe.seed + seed_offset
    spec = ModelSpec(
        source=source,
        head="scalar",
        trainable_layers=place.recipe.trainable_layers,
        optimizer=optimizer(config),
        members=config.members,
        fresh_head=True,
        seed=seed,
    )
    engine.add("reward", spec)
    class_name(engine.models["reward"].source.config, "scalar")  # better known now than when it is to be written
    say_notes(place, engine, "reward")
    if has_judge(place.recipe):
        held_out = spread(held_out, MEASURED_RANKINGS, attrgetter("prompt.category"))
    result = reward.train(engine, engine.chat, train, held_out, config, place.stage(name, seed_offset))
    tell_truncated(place, result, "reward")
    if kind_of(name) == "reward" and result["n"] and (config.shuffles or config.learning_curve):
        whole = result.get("accuracy_interval") if config.is_like_its_controls else None
        result |= controls.run(engine, engine.chat, spec, train, held_out, config, place.stages[name], whole)
    # A judge compares two answers: where its zero lies is all the same.
    has_policy = kind_of(name) == "reward" and place.policy != place.base
    demonstrations = place.demonstrations.records if has_policy else ()
    can_sample = has_policy and has_vocabulary(engine.chat.tokenizer, place.policy)
    if can_sample:
        place.add(engine, "policy", place.policy)
    elif has_policy:
        place.progress.say(
            f"{source} has another tokenizer than the policy: its unit is the spread of the ranked answers"
        )
    ppo = place.recipe.ppo
    sampling = SamplingParams(temperature=ppo.temperature, max_new_tokens=ppo.response_length, key=("scale", seed))
    gain, shifts = reward.scale(engine, engine.chat, train, demonstrations, sampling if can_sample else None)
    noted: dict[str, Any] = {"reward_temperature": ppo.temperature} if can_sample else {}
    if config.members > 1:
        noted["reward_member_shifts"] = shifts
    export(place, engine, "reward", name, gain=gain, reward_shift=shifts[0], reward_gain=gain, **noted)
    if result["n"]:
        for line in (result["verdict"], *controls.told(result)):
            place.progress.say(line)
    return result | {"gain": gain, "shift": shifts[0]}


# -- ppo --------------------------------------------------------------------------------------------------------------


def ppo_inputs(place: Workplace) -> dict[str, Input]:
    config = place.recipe.ppo
    inputs = {"model": place.model_input(place.policy), "prompts": data_input(place.prompts)}
    if "model" in config.rewards:
        inputs["reward"] = place.model_input(place.reward_model)
    inputs |= code_inputs(config.rewards)
    if config.ptx_coef:
        inputs["demonstrations"] = data_input(place.demonstrations)
    return inputs


def code_inputs(rewards: Mapping[str, float]) -> dict[str, Input]:
    """The files of the Python functions among the rewards."""
    files = sorted({name.rpartition(":")[0] for name in functions(rewards)})
    return {f"code of {file}": file_input(Path(file)) for file in files}


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
    result = ppo.train(engine, engine.chat, prompts, score, config, place.stage(place.named("ppo")), demonstrations)
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


# -- evaluate ---------------------------------------------------------------------------------------------------------


def judge_folder(place: Workplace) -> Path | None:
    if place.judge:
        return resolve(place.judge, place.progress.say)
    folder, wanted = place.run.stage_dir("judge"), place.recipe.evaluate.judge
    return folder if has_judge(place.recipe) or (wanted and not place.models and (folder / DONE).exists()) else None


def evaluate_inputs(place: Workplace) -> dict[str, Input]:
    inputs = {name: place.model_input(folder) for name, folder in place.compared.items()}
    inputs["prompts"] = data_input(place.evaluation)
    judge = judge_folder(place)
    if judge is not None:
        inputs["judge"] = place.model_input(judge)
    return inputs


def evaluate_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.evaluate
    place.tell(place.evaluation)
    prompts = place.evaluation.records
    models = place.compared
    runs = [place.run, *(Run(folder.resolve().parent) for folder in models.values())]
    refuse_trained(set[str]().union(*(run.training_prompts() for run in runs)), prompts)
    engine = place.engine(next(iter(models.values())), temperature=config.temperature)
    for name, folder in models.items():
        place.add(engine, name, folder)
    judge, folder = None, judge_folder(place)
    if folder is not None:
        place.add(engine, "judge", folder, head="scalar", members=members_in(folder))
        measured = read_json(folder / "metrics.json")
        judge = measured if measured.get("n") else None
        if judge is None:
            place.progress.warn(f"nothing is known of how often {folder} is right on held-out pairs: it is not counted")
    shown = read_prompts(BRIEF).records if config.prompts.startswith("builtin:") and config.prompts != BRIEF else ()
    return evaluate.run(engine, engine.chat, list(models), prompts, shown, config, place.stage("evaluate"), judge)


# -- helpers ----------------------------------------------------------------------------------------------------------


def optimizer(config: SFTConfig | RewardConfig | DPOConfig) -> OptimizerSpec:
    return OptimizerSpec(eps=1e-8, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm)


def ppo_optimizer(config: PPOConfig) -> OptimizerSpec:
    """Adam's eps is larger in PPO, where late gradients are small and noisy (Huang et al. 2024)."""
    return OptimizerSpec(eps=1e-5, max_grad_norm=config.max_grad_norm)


def tell_truncated(place: Workplace, result: Mapping[str, Any], section: str) -> None:
    """Tell what `section`.max_length or the model's context cut off, if anything."""
    texts, lost_end, held_out = (result.get(key, 0) for key in ("truncated", "lost_end", "held_out_truncated"))
    if texts + held_out:
        place.progress.warn(
            f"{texts} texts, and {held_out} held-out ones, are longer than {section}.max_length or the model's context and lost "
            f"their start; {lost_end} of the first are answers that are too long alone and lost their end"
        )


def export(place: Workplace, engine: LocalEngine, model: str, stage: str, **extra: Any) -> None:
    """Raises `RunError` where the disk is full: the stage's last checkpoint stands behind its last step."""
    folder = place.run.stage_dir(stage)
    with as_run_error(folder):
        engine.export(model, folder, **extra)


def say_notes(place: Workplace, engine: LocalEngine, model: str) -> None:
    for note in engine.models[model].source.notes:
        place.progress.warn(note)


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
    "sft": Job("sft", settings("sft"), sft_inputs, sft_work, "supervised fine-tuning on ideal answers"),
    "reward": Job("reward", reward_settings, reward_inputs, reward_work, "reward model on ranked answers"),
    "judge": Job("judge", judge_settings, judge_inputs, judge_work, "judge on the other rankings"),
    "label": Job("label", rounds_settings, rounds_inputs, rounds.work, "the policy's own answers, ranked"),
    "ppo": Job("ppo", settings("ppo"), ppo_inputs, ppo_work, "PPO on a leash to the SFT model"),
    "dpo": Job("dpo", settings("dpo"), dpo_inputs, dpo_work, "direct preference optimisation on ranked answers"),
    "evaluate": Job("evaluate", settings("evaluate"), evaluate_inputs, evaluate_work, "before and after"),
}


def jobs_of(recipe: Recipe) -> list[Job]:
    """The jobs of a recipe in order; a judge is trained beside what learns from the rankings where the evaluation wants one."""
    names = [name for name in recipe.stages if name != "report"]
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
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
