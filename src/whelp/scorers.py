"""What scores PPO's answers, as the recipe weighs it: the reward model, the prompts' checks, functions; and the critic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine, ModelSpec, OptimizerSpec, SamplingParams
from whelp.errors import ConfigError, ModelError, TrainingError
from whelp.maths.stats import clusters_of
from whelp.models.export import POSTERIOR
from whelp.models.loading import context_of, has_vocabulary, load_classifier
from whelp.models.sources import resolve
from whelp.rewards.base import Reward
from whelp.rewards.classifier import ClassifierReward
from whelp.rewards.compose import AgainstReference, WeightedSum, load_function
from whelp.rewards.model import ModelReward, TextReward
from whelp.rewards.rules import CheckerReward
from whelp.rewards.surface import TERMS, SurfaceReward
from whelp.runs.files import read_json
from whelp.stages.reward import member_scores
from whelp.stages.trust import guessed
from whelp.types import Completion, Prompt
from whelp.workplace import Workplace


def scorer(place: Workplace, engine: Engine) -> Reward:
    """The recipe's reward. A reward model of the policy's vocabulary becomes the engine's "reward"; one that is worse than the
    surface of the answers is refused."""
    weights = place.recipe.ppo.rewards
    if "model" not in weights:
        return _sum(weights, None)
    warn_or_refuse(place, place.reward_model)
    warn_of_unit(place, place.reward_model)
    learned, gain = _learned(place, engine, place.reward_model, "reward")
    if place.recipe.ppo.shaping == "preference":
        ppo = place.recipe.ppo
        params = SamplingParams(1, ppo.temperature, ppo.response_length, ("reference", place.recipe.seed))
        learned = AgainstReference(learned, gain, engine, engine.chat, params)
    return _sum(weights, learned)


def second_opinion(place: Workplace, engine: Engine) -> Reward | None:
    """Who is heard of every answer and teaches nothing. Raises `ConfigError` where that is the reward model itself."""
    if place.recipe.ppo.second_opinion is None:
        return None
    folder = opinion_folder(place)
    if "model" in place.recipe.ppo.rewards and folder.resolve() == place.reward_model.resolve():
        raise ConfigError(
            f"ppo.second_opinion is {folder}, the reward model itself; expected one that learned from others."
        )
    reward, _ = _learned(place, engine, folder, "second-opinion")
    return reward


def opinion_folder(place: Workplace) -> Path:
    """The run's own judge, or the model that is named."""
    named = str(place.recipe.ppo.second_opinion)
    return place.run.stage_dir("judge") if named == "judge" else resolve(named, place.progress.say)


def labeller(place: Workplace, engine: Engine) -> Reward:
    """What ranks the policy's answers in an online round, where no people do."""
    config, learned = place.recipe.rounds, None
    if config.label_model is not None:
        model = resolve(config.label_model, place.progress.say)
        learned, _ = _learned(place, engine, model, "gold", as_sampled=False)
    return _sum(config.labels, learned, CheckerReward(beside_twins=False))


def _sum(weights: Mapping[str, float], learned: Reward | None, checker: Reward | None = None) -> Reward:
    return WeightedSum([(weight, _part(name, learned, checker or CheckerReward())) for name, weight in weights.items()])


def _part(name: str, learned: Reward | None, checker: Reward) -> Reward:
    match name:
        case "model":
            assert learned is not None
            return learned
        case "checker":
            return checker
        case _:
            return SurfaceReward(name) if name in TERMS else load_function(name)


def _learned(
    place: Workplace, engine: Engine, folder: Path, name: str, as_sampled: bool = True
) -> tuple[Reward, float]:
    """A reward model, and what made its scores of its raw logits. `as_sampled`: answers that were cut off are read so."""
    if not made_by_whelp(folder):
        place.progress.say(f"{folder} was not made by whelp: it reads the answers' text, as transformers runs it")
        if place.recipe.ppo.debias_length:
            length_slope(place, folder, None)
        return classifier(place, folder), 1.0
    shares_tokens = has_vocabulary(engine.chat.tokenizer, folder)
    home = engine if shares_tokens else place.engine(folder, place.recipe.reward.max_length)
    members = members_in(folder)
    home.add(name, place.spec(folder, head="scalar", members=members))
    config = home.config(name)
    shifts = getattr(config, "reward_member_shifts", None) or [getattr(config, "reward_shift", 0.0)] * members
    if len(shifts) != members:
        raise ModelError(
            f"{folder}: config.json has {len(shifts)} reward_member_shifts, but there are {members} members; expected as many."
        )
    shift = torch.tensor(shifts, dtype=torch.float32)
    ppo = place.recipe.ppo
    if ppo.reward_aggregation == "uncertainty" and not (folder / POSTERIOR).is_file():
        place.progress.warn(
            f"{folder} has no {POSTERIOR}, which says what a reward model is sure of: only what its members disagree about is "
            "doubted. Train it again to have it."
        )
    slope = length_slope(place, folder, config) if ppo.debias_length else 0.0
    model = ModelReward(home, name, shift, ppo.reward_aggregation, ppo.uncertainty_coef, slope)
    reward: Reward = model
    if not shares_tokens:
        place.progress.say(
            f"{folder} has another tokenizer than the policy: it reads the answers' text, by its own template"
        )
        reward = TextReward(model, home.chat, as_sampled)
    return reward, getattr(config, "reward_gain", 1.0)


def length_slope(place: Workplace, folder: Path, config: Any) -> float:
    """What the reward model of `folder` pays for a word as such. Raises `ModelError` where that was not measured."""
    slope = getattr(config, "reward_length_slope", None)
    if slope is None:
        raise ModelError(
            f"ppo.debias_length: nothing is known of what {folder} pays for length. Train it by whelp reward with held-out "
            "rankings, or take off - 0.01 * length in ppo.reward."
        )
    place.progress.say(f"{slope:+.4f} a word is taken off: what the reward model pays for length as such")
    return slope


def made_by_whelp(folder: Path) -> bool:
    """True of a reward model whose scored token is where whelp puts it."""
    return "reward_gain" in read_json(folder / "config.json")


def reward_engine(place: Workplace, folder: Path) -> Engine:
    """An engine with the reward model of `folder`, under the name "reward", to score texts with."""
    engine = place.engine(folder, place.recipe.reward.max_length)
    engine.add("reward", place.spec(folder, head="scalar", members=members_in(folder)))
    return engine


TextScorer = Callable[[Sequence[tuple[Prompt, str]]], Float[Tensor, "M N"]]
"""Raw scores of answers to prompts by every member of a reward model."""


def text_scorer(place: Workplace, folder: Path) -> TextScorer:
    """Of any reward model, by text alone. What an answer has in common with the first one to its prompt is computed once."""
    if made_by_whelp(folder):
        engine = reward_engine(place, folder)

        def scores(rows: Sequence[tuple[Prompt, str]]) -> Float[Tensor, "M N"]:
            rendered = [engine.chat.answer(prompt, text) for prompt, text in rows]
            return member_scores(engine, rendered, clusters_of([prompt.text for prompt, _ in rows]).tolist())

        return scores
    other = classifier(place, folder)
    return lambda rows: other.scores([Completion(prompt, text, (), (), True) for prompt, text in rows])[None]


def classifier(place: Workplace, folder: Path) -> ClassifierReward:
    """A reward model that whelp did not make."""
    longest = place.recipe.reward.max_length
    return ClassifierReward(*load_classifier(folder, place.compute), min(longest, context_of(folder) or longest))


def critic(place: Workplace, engine: Engine, optimizer: OptimizerSpec) -> ModelSpec:
    """PPO's critic, at 0 to begin with. One of its own starts from the model that knows most of the score."""
    is_shared = place.recipe.ppo.critic == "shared"
    return place.spec(
        None,
        copy_of="reward" if engine.has("reward") and not is_shared else "policy",
        shares_branch=is_shared,
        head="scalar",
        fresh_head=True,  # the reward model's own reads finished answers: before their end it is noise
        head_std=0.0,
        optimizer=optimizer,
    )


def where_trusted(place: Workplace, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Without those of categories in which the reward model guesses: there it teaches the policy nothing but its own bias.
    Their twins go with them: false claims without the true ones teach to contradict whatever is said. Where the prompts' own
    checks score too, all are kept."""
    rewards = place.recipe.ppo.rewards
    if "model" not in rewards or "checker" in rewards:
        return prompts
    twinned = {prompt.category for prompt in prompts if prompt.pair is not None}
    guesses = guessed(read_json(place.reward_model / "metrics.json"), twinned)
    alone = {prompt.pair for prompt in prompts if prompt.category in guesses and prompt.pair is not None}
    kept = [prompt for prompt in prompts if prompt.category not in guesses and prompt.pair not in alone]
    left_out = sorted({prompt.category for prompt in prompts} & guesses.keys())
    if not left_out or not kept or not place.recipe.ppo.only_where_trusted:
        return prompts
    rates = ", ".join(f"{name} {guesses[name]:.0%}" for name in left_out)
    place.progress.warn(
        f"PPO leaves out {len(prompts) - len(kept)} of {len(prompts)} prompts: on held-out pairs of their or their twin's kind "
        f"the reward model is no better than a guess ({rates} right). ppo.only_where_trusted=false keeps them."
    )
    return kept


def members_in(folder: Path) -> int:
    return 1 + len(list(folder.glob("member-*")))


def warn_or_refuse(place: Workplace, folder: Path) -> None:
    """Raises `TrainingError` where the reward model of `folder` is worse than the surface of the answers."""
    metrics = read_json(folder / "metrics.json")
    advantage = metrics.get("advantage")
    if not advantage:
        place.progress.warn("nothing is known of this reward model's accuracy on held-out pairs")
    elif advantage["high"] < 0:
        raise TrainingError(
            f"PPO refuses this reward model. {metrics['verdict']} Look at {folder / 'metrics.json'}, give more or cleaner "
            "rankings, or train it with another learning rate."
        )
    elif not metrics.get("trusted"):
        place.progress.warn(f"{metrics['verdict']} PPO will learn whatever it rewards.")


def warn_of_unit(place: Workplace, folder: Path) -> None:
    scaled_at = read_json(folder / "config.json").get("reward_temperature")
    temperature = place.recipe.ppo.temperature
    if scaled_at is not None and scaled_at != temperature:
        place.progress.warn(
            f"the unit of this reward was measured on samples at temperature {scaled_at:g} and PPO samples at {temperature:g}: "
            "kl_coef weighs otherwise. Train the reward model again with this temperature."
        )
