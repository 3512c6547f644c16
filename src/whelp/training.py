"""Models that a run trains on what people wrote and ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from whelp.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from whelp.engines.base import Engine, OptimizerSpec, SamplingParams
from whelp.models.export import class_name
from whelp.models.loading import has_vocabulary
from whelp.runs.files import as_run_error
from whelp.runs.manifest import kind_of
from whelp.splits import has_judge
from whelp.stages import controls, reward, sft
from whelp.stages.context import spread
from whelp.types import Demonstration, Ranking
from whelp.workplace import Workplace

MEASURED_RANKINGS = 300
"""Of those that a reward model never saw: scoring them all would take as long as the training."""


def train_sft(
    place: Workplace, name: str, train: Sequence[Demonstration], held_out: Sequence[Demonstration]
) -> dict[str, Any]:
    config = place.recipe.sft
    place.tell(place.demonstrations)
    place.record_prompts(name, place.base)
    engine = place.engine(place.base, config.max_length)
    layers = place.recipe.sft_layers
    engine.add("policy", place.spec(place.base, trainable_layers=layers, optimizer=optimizer(config)))
    say_notes(place, engine, "policy")
    result = sft.train(engine, engine.chat, train, held_out, config, place.stage(name))
    tell_truncated(place, result, "sft")
    export(place, engine, "policy", name)
    return result


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
    spec = place.spec(
        source, head="scalar", optimizer=optimizer(config), members=config.members, fresh_head=True, seed=seed
    )
    engine.add("reward", spec)
    class_name(engine.config("reward"), "scalar")  # better known now than when it is to be written
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
    if "length_bias" in result:
        noted["reward_length_slope"] = gain * result["length_bias"]["slope"]
    if config.members > 1:
        noted["reward_member_shifts"] = shifts
    export(place, engine, "reward", name, gain=gain, reward_shift=shifts[0], reward_gain=gain, **noted)
    if result["n"]:
        for line in (result["verdict"], *controls.told(result)):
            place.progress.say(line)
    return result | {"gain": gain, "shift": shifts[0]}


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


def export(place: Workplace, engine: Engine, model: str, stage: str, **extra: Any) -> None:
    """Raises `RunError` where the disk is full: the stage's last checkpoint stands behind its last step."""
    folder = place.run.stage_dir(stage)
    with as_run_error(folder):
        engine.export(model, folder, **extra)


def say_notes(place: Workplace, engine: Engine, model: str) -> None:
    for note in engine.notes(model):
        place.progress.warn(note)
