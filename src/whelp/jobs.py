"""What each stage of a run needs: its models, its data, and what its result depends on.

The stages themselves know no files and no engine; here they meet both.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from whelp.config import PPOConfig, Recipe, RewardConfig, SFTConfig
from whelp.engines.base import ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute, choose
from whelp.engines.local import LocalEngine
from whelp.errors import ConfigError, DataError, TrainingError
from whelp.models.loading import load_tokenizer
from whelp.models.sources import resolve
from whelp.progress import Progress
from whelp.rewards.base import Reward
from whelp.rewards.model import ModelReward
from whelp.rewards.rules import CheckerReward
from whelp.runs.files import read_json, sha256_file, sha256_json
from whelp.runs.manifest import DONE, Run
from whelp.splits import RankingSplit, has_judge, split_rankings, user_turns
from whelp.stages import evaluate, ppo, reward, sft
from whelp.stages.context import Stage
from whelp.text.chat import Chat
from whelp.text.formats import Loaded, prompt_hash, read_demonstrations, read_prompts, split_by_hash
from whelp.types import Message, Prompt, Ranking

JUDGE_SEED = 1_000
BRIEF = "builtin:brief"


@dataclass
class Workplace:
    """Everything that the jobs of one command share."""

    recipe: Recipe
    run: Run
    progress: Progress
    models: Mapping[str, str] = field(default_factory=dict)
    """`whelp evaluate` only: the models to compare, by name."""
    judge: str | None = None
    """`whelp evaluate` only: the folder of the judge."""
    weight_ids: dict[Path, str] = field(default_factory=dict, init=False)

    @cached_property
    def compute(self) -> Compute:
        return choose(self.recipe.device, self.recipe.dtype)

    @cached_property
    def base(self) -> Path:
        return resolve(self.recipe.model, self.progress.say)

    @property
    def policy(self) -> Path:
        """What the reward model and PPO start from: the SFT model where the run has that stage."""
        return self.run.stage_dir("sft") if "sft" in self.recipe.stages else self.base

    @property
    def reward_model(self) -> Path:
        named = self.recipe.ppo.reward_model
        return resolve(named, self.progress.say) if named else self.run.stage_dir("reward")

    def engine(self, model: Path, max_length: int | None = None, temperature: float = 1.0) -> LocalEngine:
        chat = Chat(load_tokenizer(model), self.recipe.system_prompt, max_length)
        return LocalEngine(chat, self.compute, temperature)

    def spec(self, source: Path | None, **changes: Any) -> ModelSpec:
        return ModelSpec(source=source, trainable_layers=self.recipe.trainable_layers, seed=self.recipe.seed, **changes)

    def stage(self, name: str, seed_offset: int = 0) -> Stage:
        save_steps, limit = (self.recipe.ppo.save_steps, self.recipe.ppo.save_total_limit) if name == "ppo" else (50, 1)
        return Stage(self.run.stage_dir(name), self.progress, self.recipe.seed + seed_offset, save_steps, limit)

    def tell(self, loaded: Loaded[Any]) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in loaded.counts.items())
        self.progress.say(f"{loaded.path}: {counts} ({loaded.format})")

    @cached_property
    def rankings(self) -> RankingSplit:
        return split_rankings(self.recipe)


@dataclass(frozen=True)
class Job:
    """One stage: what it depends on, and what it does."""

    name: str
    settings: Callable[[Workplace], dict[str, Any]]
    inputs: Callable[[Workplace], dict[str, str]]
    """What is read, by name: the sha256 of a file or of an earlier stage's fingerprint."""
    work: Callable[[Workplace], dict[str, Any]]
    what: str


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


def model_id(place: Workplace, folder: Path) -> str:
    """A stage of this run by what it was made from, any other model by its weights."""
    if folder.parent == place.run.path:
        return str(read_json(folder / DONE).get("fingerprint", "not made yet"))
    if folder not in place.weight_ids:  # several stages ask, and large weights take a while to hash
        weights = sorted(folder.glob("*.safetensors"))
        place.weight_ids[folder] = sha256_json([sha256_file(file) for file in (*weights, folder / "config.json")])
    return place.weight_ids[folder]


# -- sft --------------------------------------------------------------------------------------------------------------


def sft_inputs(place: Workplace) -> dict[str, str]:
    return {
        "model": model_id(place, place.base),
        "demonstrations": read_demonstrations(place.recipe.sft.train_file).sha256,
    }


def sft_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.sft
    loaded = read_demonstrations(config.train_file)
    place.tell(loaded)
    train, held_out = split_by_hash(loaded.records, lambda d: d.messages[:1], 1 - config.test_fraction, "sft")
    place.run.record_training_prompts("sft", user_turns(d.messages for d in train))
    engine = place.engine(place.base, config.max_length)
    engine.add("policy", place.spec(place.base, optimizer=optimizer(config)))
    say_notes(place, engine, "policy")
    result = sft.train(engine, engine.chat, train, held_out, config, place.stage("sft"))
    engine.export("policy", place.run.stage_dir("sft"))
    return result


# -- reward and judge -------------------------------------------------------------------------------------------------


def reward_source(place: Workplace) -> Path:
    named = place.recipe.reward.model
    return resolve(named, place.progress.say) if named else place.policy


def reward_inputs(place: Workplace) -> dict[str, str]:
    split = place.rankings
    inputs = {"model": model_id(place, reward_source(place)), "rankings": split.loaded.sha256}
    if split.test is not None:
        inputs["test_rankings"] = split.test.sha256
    if has_judge(place.recipe):
        inputs["split"] = "half"
    return inputs


def reward_work(place: Workplace) -> dict[str, Any]:
    split = place.rankings
    place.tell(split.loaded)
    return train_reward_model(place, "reward", reward_source(place), split.train, split.held_out)


def judge_inputs(place: Workplace) -> dict[str, str]:
    return {"model": model_id(place, place.base), "rankings": place.rankings.loaded.sha256}


def judge_work(place: Workplace) -> dict[str, Any]:
    split = place.rankings
    return train_reward_model(place, "judge", place.base, split.held_out, split.train, JUDGE_SEED)


def train_reward_model(
    place: Workplace,
    name: str,
    source: Path,
    train: Sequence[Ranking],
    held_out: Sequence[Ranking],
    seed_offset: int = 0,
) -> dict[str, Any]:
    config = place.recipe.reward
    place.run.record_training_prompts(name, user_turns(r.prompt.messages for r in train))
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
    say_notes(place, engine, "reward")
    result = reward.train(engine, engine.chat, train, held_out, config, place.stage(name, seed_offset))
    has_policy = "sft" in place.recipe.stages
    demonstrations = read_demonstrations(place.recipe.sft.train_file).records if has_policy else ()
    if has_policy:
        engine.add("policy", place.spec(place.policy))
    gain, shift = reward.scale(engine, engine.chat, train, demonstrations, has_policy=has_policy, seed=seed)
    engine.export("reward", place.run.stage_dir(name), gain=gain, reward_shift=shift, reward_gain=gain)
    if result["n"]:
        place.progress.say(result["verdict"])
    return result | {"gain": gain, "shift": shift}


# -- ppo --------------------------------------------------------------------------------------------------------------


def ppo_inputs(place: Workplace) -> dict[str, str]:
    config = place.recipe.ppo
    inputs = {"model": model_id(place, place.policy), "prompts": read_prompts(config.train_file).sha256}
    if config.reward == "model":
        inputs["reward"] = model_id(place, place.reward_model)
    if config.ptx_coef:
        inputs["demonstrations"] = read_demonstrations(place.recipe.sft.train_file).sha256
    return inputs


def ppo_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.ppo
    loaded = read_prompts(config.train_file)
    place.tell(loaded)
    place.run.record_training_prompts("ppo", user_turns(p.messages for p in loaded.records))
    engine = place.engine(place.policy, temperature=config.temperature)
    engine.add("policy", place.spec(place.policy, optimizer=ppo_optimizer(config)))
    engine.add("reference", place.spec(None, copy_of="policy"))
    say_notes(place, engine, "policy")
    check_prompts(engine, loaded.records, config.response_length)
    scorer = ppo_reward(place, engine)
    engine.add("value", critic(place.recipe))
    demonstrations = read_demonstrations(place.recipe.sft.train_file).records if config.ptx_coef else ()
    result = ppo.train(engine, engine.chat, loaded.records, scorer, config, place.stage("ppo"), demonstrations)
    engine.export("policy", place.run.stage_dir("ppo"))
    return result


def critic(recipe: Recipe) -> ModelSpec:
    """PPO's critic: it starts from the model that knows most of the score, at 0 where that has no scalar head."""
    return ModelSpec(
        copy_of="reward" if recipe.ppo.reward == "model" else "policy",
        head="scalar",
        head_std=0.0,
        trainable_layers=recipe.trainable_layers,
        seed=recipe.seed,
        optimizer=ppo_optimizer(recipe.ppo),
    )


def ppo_reward(place: Workplace, engine: LocalEngine) -> Reward:
    """The scorer, with its model in the engine; refuses a reward model that is worse than the surface of the answers."""
    if place.recipe.ppo.reward == "checker":
        return CheckerReward()
    folder = place.reward_model
    warn_or_refuse(place, read_json(folder / "metrics.json"))
    engine.add(
        "reward",
        ModelSpec(
            source=folder, head="scalar", trainable_layers=place.recipe.trainable_layers, members=members_in(folder)
        ),
    )
    config = engine.models["reward"].source.config
    return ModelReward(engine, "reward", float(getattr(config, "reward_shift", 0.0)))


def members_in(folder: Path) -> int:
    return 1 + len(list(folder.glob("member-*")))


def warn_or_refuse(place: Workplace, metrics: Mapping[str, Any]) -> None:
    advantage = metrics.get("advantage")
    if not advantage:
        place.progress.warn("nothing is known of this reward model's accuracy on held-out pairs")
    elif advantage["high"] < 0:
        raise TrainingError(
            f"PPO refuses this reward model. {metrics['verdict']} Look at reward/metrics.json, give more or cleaner rankings, or "
            "train it with another learning rate."
        )
    elif not metrics.get("trusted"):
        place.progress.warn(f"{metrics['verdict']} PPO will learn whatever it rewards.")


# -- evaluate ---------------------------------------------------------------------------------------------------------


def compared(place: Workplace) -> dict[str, Path]:
    """The models to compare, in the order of the pipeline."""
    if place.models:
        return {name: resolve(source, place.progress.say) for name, source in place.models.items()}
    found = {"base": place.base}
    if "sft" in place.recipe.stages:
        found["sft"] = place.run.stage_dir("sft")
    if "ppo" in place.recipe.stages:
        found["rlhf"] = place.run.stage_dir("ppo")
    return found


def judge_folder(place: Workplace) -> Path | None:
    if place.judge:
        return resolve(place.judge, place.progress.say)
    return place.run.stage_dir("judge") if has_judge(place.recipe) else None


def evaluate_inputs(place: Workplace) -> dict[str, str]:
    inputs = {name: model_id(place, folder) for name, folder in compared(place).items()}
    inputs["prompts"] = read_prompts(place.recipe.evaluate.prompts).sha256
    judge = judge_folder(place)
    if judge is not None:
        inputs["judge"] = model_id(place, judge)
    return inputs


def evaluate_work(place: Workplace) -> dict[str, Any]:
    config = place.recipe.evaluate
    loaded = read_prompts(config.prompts)
    place.tell(loaded)
    models = compared(place)
    refuse_trained(place, models.values(), loaded.records)
    engine = place.engine(next(iter(models.values())), temperature=config.temperature)
    for name, folder in models.items():
        engine.add(name, place.spec(folder))
    check_prompts(engine, loaded.records, config.max_new_tokens)
    judge, folder = None, judge_folder(place)
    if folder is not None:
        engine.add("judge", place.spec(folder, head="scalar", members=members_in(folder)))
        measured = read_json(folder / "metrics.json")
        judge = measured if measured.get("n") else None
    shown = read_prompts(BRIEF).records if config.prompts.startswith("builtin:") else ()
    return evaluate.run(
        engine, engine.chat, list(models), loaded.records, shown, config, place.stage("evaluate"), judge
    )


def refuse_trained(place: Workplace, models: Iterable[Path], prompts: Sequence[Prompt]) -> None:
    """Raises `DataError` where an evaluation prompt has trained one of the models, in this run or in the run it lies in."""
    runs = [place.run, *(Run(folder.resolve().parent) for folder in models)]
    trained = set[str]().union(*(run.training_prompts() for run in runs))
    seen = [p.id for p in prompts if prompt_hash([Message("user", p.text)]) in trained]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(prompts)} evaluation prompts were trained on by a model compared here (for example "
            f"{', '.join(seen[:5])}). Take them out: answers to them prove nothing."
        )


# -- helpers ----------------------------------------------------------------------------------------------------------


def optimizer(config: SFTConfig | RewardConfig) -> OptimizerSpec:
    return OptimizerSpec(eps=1e-8, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm)


def ppo_optimizer(config: PPOConfig) -> OptimizerSpec:
    """Adam's eps is larger in PPO, where late gradients are small and noisy (Huang et al. 2024)."""
    return OptimizerSpec(eps=1e-5, max_grad_norm=config.max_grad_norm)


def say_notes(place: Workplace, engine: LocalEngine, model: str) -> None:
    for note in engine.models[model].source.notes:
        place.progress.warn(note)


def check_prompts(engine: LocalEngine, prompts: Sequence[Prompt], room: int) -> None:
    """Raises `DataError` naming the prompts that leave no room for an answer in the model's context."""
    config = next(iter(engine.models.values())).source.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return
    long = [(p.id, n) for p in prompts if (n := len(engine.chat.prompt(p))) + room > context]
    if long:
        raise DataError(
            f"{len(long)} prompts leave no room for {room} new tokens in the model's context of {context} (for example "
            f"{', '.join(f'{name}: {n} tokens' for name, n in long[:5])}). Shorten them or the answers."
        )


def report_work(place: Workplace) -> dict[str, Any]:
    from whelp.report import write_report

    return {"report": str(write_report(place.run.path))}


JOBS = {
    "sft": Job("sft", settings("sft"), sft_inputs, sft_work, "supervised fine-tuning on ideal answers"),
    "reward": Job("reward", settings("reward"), reward_inputs, reward_work, "reward model on ranked answers"),
    "judge": Job("judge", settings("reward"), judge_inputs, judge_work, "judge on the other half of the rankings"),
    "ppo": Job("ppo", settings("ppo"), ppo_inputs, ppo_work, "PPO on a leash to the SFT model"),
    "evaluate": Job("evaluate", settings("evaluate"), evaluate_inputs, evaluate_work, "before and after"),
}


def jobs_of(recipe: Recipe) -> list[Job]:
    """The jobs of a recipe in order; a judge is trained beside the reward model where the evaluation wants one."""
    names = [name for name in recipe.stages if name != "report"]
    if has_judge(recipe):
        names.insert(names.index("reward") + 1, "judge")
    return [JOBS[name] for name in names]


def clear_checkpoints(folder: Path) -> None:
    """A finished stage has its model; the optimizer's state is no longer of use."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def refuse_unmade(place: Workplace) -> None:
    """Raises `ConfigError` where PPO wants the run's reward model and there is none."""
    recipe = place.recipe
    wanted = "ppo" in recipe.stages and recipe.ppo.reward == "model" and not recipe.ppo.reward_model
    if wanted and "reward" not in recipe.stages and not read_json(place.run.stage_dir("reward") / DONE):
        raise ConfigError(
            f"ppo needs a reward model: add reward to the stages, give --reward_model, or run whelp reward into {place.run.path}."
        )
