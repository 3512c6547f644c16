"""What is wrong with a recipe although each of its values is allowed by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from whelp.config import Recipe
from whelp.models.sources import fault
from whelp.rewards.formula import NAMES, functions
from whelp.text.formats.lines import BUILTIN, DATABASE, builtins, is_of_the_hub

ORDER = ("sft", "revise", "feedback", "reward", "ppo", "dpo", "evaluate", "audit", "report")
_DATA_KEYS = {
    "sft": ("sft.train_file",),
    "revise": ("constitution.train_file", "constitution.principles", "sft.train_file"),
    "feedback": ("constitution.train_file", "constitution.principles", "reward.train_file", "reward.test_file"),
    "reward": ("reward.train_file", "reward.test_file"),
    "ppo": ("ppo.train_file",),
    "dpo": ("reward.train_file", "reward.test_file"),
    "evaluate": ("evaluate.prompts",),
}


@dataclass(frozen=True, slots=True)
class Mistake:
    """A fault and the keys that it lies between, the one to change first."""

    keys: tuple[str, ...]
    text: str


def mistakes(recipe: Recipe) -> list[Mistake]:
    """All of them, from every check."""
    return [mistake for check in CHECKS for mistake in check(recipe)]


def kl_estimator(recipe: Recipe) -> Iterator[Mistake]:
    """Schulman's k3 is a good estimate of the KL's value; as a reward its gradient is not that of the KL."""
    if recipe.ppo.kl_estimator == "k3":
        yield Mistake(
            ("ppo.kl_estimator",),
            "given k3; expected k1. k3 estimates the value of the KL well, but in the reward its gradient is wrong: it "
            "is not that of the KL to the SFT model. The gradient of k1, the log-ratio, is right",
        )


def batches(recipe: Recipe) -> Iterator[Mistake]:
    """Minibatches must be of one size, or their steps would weigh differently."""
    batch, parts = recipe.ppo.batch_size, recipe.ppo.num_mini_batches
    if batch % parts:
        yield Mistake(
            ("ppo.batch_size", "ppo.num_mini_batches"),
            f"given {batch}, which num_mini_batches {parts} does not divide; expected a multiple of {parts}, "
            f"for example {max(parts, batch - batch % parts)}",
        )


def generations(recipe: Recipe) -> Iterator[Mistake]:
    """Answers to one prompt are compared with each other, in one batch."""
    batch, answers, advantage = recipe.ppo.batch_size, recipe.ppo.num_generations, recipe.ppo.advantage
    if advantage != "gae" and answers < 2:
        yield Mistake(
            ("ppo.num_generations", "ppo.advantage"),
            f"given {answers}; expected at least 2, for {advantage} compares the answers to one prompt, for example 4",
        )
    if batch % answers:
        yield Mistake(
            ("ppo.batch_size", "ppo.num_generations"),
            f"given {batch}, which num_generations {answers} does not divide; expected a multiple of {answers}",
        )


def value_coef(recipe: Recipe) -> Iterator[Mistake]:
    """Two losses are weighed against each other only where they move the same layers."""
    if recipe.ppo.vf_coef is not None and recipe.ppo.critic == "own":
        yield Mistake(
            ("ppo.vf_coef", "ppo.critic"),
            f"given {recipe.ppo.vf_coef:g}, but the critic has layers of its own and shares no loss with the policy; expected "
            "ppo.critic: shared, or value_learning_rate for its speed",
        )


def episodes(recipe: Recipe) -> Iterator[Mistake]:
    """One iteration is the least that can be run."""
    if recipe.ppo.total_episodes < recipe.ppo.batch_size:
        yield Mistake(
            ("ppo.total_episodes", "ppo.batch_size"),
            f"given {recipe.ppo.total_episodes}; expected at least one batch, of {recipe.ppo.batch_size}",
        )
    iterations, warmup = recipe.ppo.total_episodes // recipe.ppo.batch_size, recipe.ppo.critic_warmup_iterations or 0
    if recipe.ppo.advantage == "gae" and warmup >= iterations > 0:
        yield Mistake(
            ("ppo.critic_warmup_iterations", "ppo.total_episodes", "ppo.batch_size"),
            f"given {warmup}, but there are {iterations} iterations, so that the policy would never learn; expected fewer",
        )


def stage_order(recipe: Recipe) -> Iterator[Mistake]:
    """A stage reads what earlier ones wrote."""
    if not recipe.stages:
        yield Mistake(("stages",), f"given an empty list; expected some of {', '.join(ORDER)}")
    right = [stage for stage in ORDER if stage in recipe.stages]
    if list(recipe.stages) != right:
        given = ", ".join(recipe.stages)
        yield Mistake(("stages",), f"given {given}; expected each stage once and in this order: {', '.join(right)}")


def rewards(recipe: Recipe) -> Iterator[Mistake]:
    """What scores an answer is written as a sum, and a function stands in a file."""
    try:
        weights = recipe.ppo.rewards
    except ValueError as error:
        yield Mistake(
            ("ppo.reward",),
            f"given {recipe.ppo.reward!r}, where {error}; expected {', '.join(NAMES)}, FILE.py:FUNCTION, or a sum of "
            "them such as model + 0.5 * checker - 0.01 * length",
        )
        return
    if "ppo" not in recipe.stages:
        return
    yield from _missing_files("ppo.reward", weights)
    if recipe.ppo.debias_length and "model" not in weights:
        yield Mistake(
            ("ppo.debias_length", "ppo.reward"),
            f"given true with ppo.reward {recipe.ppo.reward!r}; expected model there: what it pays for length is taken off",
        )
    if recipe.ppo.shaping != "none" and "model" not in weights:
        yield Mistake(
            ("ppo.shaping", "ppo.reward"),
            f"given {recipe.ppo.shaping} with ppo.reward {recipe.ppo.reward!r}; expected model there: its score is shaped",
        )


def _missing_files(setting: str, weights: Mapping[str, float]) -> Iterator[Mistake]:
    for name in functions(weights):
        file = name.rpartition(":")[0]
        if not Path(file).is_file():
            yield Mistake((setting,), f"there is no file {file!r} (paths are taken from where the command is run)")


def _rewards(recipe: Recipe) -> Mapping[str, float]:
    try:
        return recipe.ppo.rewards
    except ValueError:
        return {}


def _local_judge(recipe: Recipe) -> str | None:
    return recipe.constitution.judge_model if recipe.constitution.judge in ("choice", "verdict") else None


def models(recipe: Recipe) -> Iterator[Mistake]:
    """A name that nothing goes by is better found before the stages that come first."""
    named = {
        "model": recipe.model,
        "reward.model": recipe.reward.model if "reward" in recipe.stages else None,
        "ppo.reward_model": recipe.ppo.reward_model if "ppo" in recipe.stages else None,
        "rounds.label_model": recipe.rounds.label_model if recipe.rounds.n else None,
        "constitution.judge_model": _local_judge(recipe),
    }
    for key, name in named.items():
        if name is not None and (unknown := fault(name)):
            yield Mistake((key,), unknown)


def reward_model(recipe: Recipe) -> Iterator[Mistake]:
    """PPO with a learned reward needs the reward model of this run or of an earlier one in the same directory."""
    is_needed = "ppo" in recipe.stages and "model" in _rewards(recipe) and recipe.ppo.reward_model is None
    if not is_needed or "reward" in recipe.stages:
        return
    folder = Path(recipe.output_dir) / "reward"
    if not folder.is_dir():
        yield Mistake(
            ("stages", "ppo.reward", "output_dir"),
            f"ppo needs a reward model and {folder} does not exist; expected the stage reward in stages, an output_dir "
            "where whelp reward has run, a ppo.reward_model, or ppo.reward: checker",
        )


def rounds(recipe: Recipe) -> Iterator[Mistake]:
    """A round trains reward model and policy again, and somebody ranks what they learn from."""
    config = recipe.rounds
    if not config.n or "ppo" not in recipe.stages:
        return
    if "reward" not in recipe.stages or "model" not in _rewards(recipe) or recipe.ppo.reward_model is not None:
        yield Mistake(
            ("rounds.n", "stages", "ppo.reward", "ppo.reward_model"),
            f"given {config.n}, and a round trains a reward model for PPO; expected reward and ppo in stages, model in "
            "ppo.reward and no ppo.reward_model",
        )
    try:
        labels = config.labels
    except ValueError as error:
        yield Mistake(
            ("rounds.label",),
            f"given {config.label!r}, where {error}; expected people, model, checker, FILE.py:FUNCTION, or a sum such as "
            "model + 0.5 * checker",
        )
        return
    if ("model" in labels) != (config.label_model is not None):
        yield Mistake(
            ("rounds.label_model", "rounds.label"),
            f"given {config.label_model or 'nothing'} with rounds.label {config.label!r}; expected a reward model's folder where "
            "rounds.label names model, and only there",
        )
    yield from _missing_files("rounds.label", labels)


def constitution(recipe: Recipe) -> Iterator[Mistake]:
    """A judge must be somebody, and a label between two numbers."""
    config = recipe.constitution
    if not {"revise", "feedback"} & set(recipe.stages):
        return
    low, high = config.clamp
    if low >= high:
        yield Mistake(
            ("constitution.clamp",), f"given [{low:g}, {high:g}]; expected the lower end first, as in [0.4, 0.6]"
        )
    if not config.values:
        yield Mistake(
            ("constitution.values",), "given an empty list; expected some of helpful, honest, harmless, autonomy"
        )
    if config.judge == "endpoint" and config.judge_model is None:
        yield Mistake(
            ("constitution.judge_model", "constitution.judge"),
            "given nothing with constitution.judge: endpoint; expected the model's name there, as in gpt-4o-mini",
        )
    if config.judge == "reward" and config.judge_model is not None:
        yield Mistake(
            ("constitution.judge_model", "constitution.judge"),
            f"given {config.judge_model!r} with constitution.judge: reward, which is the run's own; expected choice, "
            "verdict or endpoint there",
        )
    if config.max_cost is not None and not config.price_in + config.price_out:
        yield Mistake(
            ("constitution.max_cost", "constitution.price_in", "constitution.price_out"),
            f"given {config.max_cost:g} without a price; expected price_in and price_out, those of a million tokens",
        )
    if config.thinking and config.judge in ("reward", "verdict"):
        yield Mistake(
            ("constitution.thinking", "constitution.judge"),
            f"given true with constitution.judge: {config.judge}, which writes nothing; expected choice or endpoint there",
        )


def report_input(recipe: Recipe) -> Iterator[Mistake]:
    """A report shows what other stages left."""
    if recipe.stages == ("report",) and not Path(recipe.output_dir).is_dir():
        yield Mistake(
            ("stages", "output_dir"),
            f"report shows what other stages did and {recipe.output_dir} does not exist; expected other stages in "
            "stages, or the output_dir of an earlier run",
        )


def data_files(recipe: Recipe) -> Iterator[Mistake]:
    """A missing file is better found now than after the stages before it."""
    for stage in recipe.stages:
        for key in _DATA_KEYS.get(stage, ()):
            section, name = key.split(".")
            value = getattr(getattr(recipe, section), name)
            fault = _data_fault(value) if value is not None else None
            if fault:
                yield Mistake((key,), fault)


def seed(recipe: Recipe) -> Iterator[Mistake]:
    """Draws are keyed by the seed times a million, in 64 bits."""
    if recipe.seed >= 2**32:
        yield Mistake(("seed",), f"given {recipe.seed}; expected less than {2**32}")


def device(recipe: Recipe) -> Iterator[Mistake]:
    """The names are torch's."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.device):
        yield Mistake(("device",), f"given {recipe.device!r}; expected auto, cpu, cuda, cuda:<number> or mps")


CHECKS: tuple[Callable[[Recipe], Iterator[Mistake]], ...] = (
    seed, device, stage_order, rewards, models, reward_model, rounds, constitution, report_input, data_files, kl_estimator,
    batches, generations, value_coef, episodes,
)  # fmt: skip


def _data_fault(value: str) -> str | None:
    if value.startswith("builtin:"):
        known = [f"{BUILTIN}{name}" for name in builtins()]
        return None if value in known else f"given {value}; expected one of {', '.join(known)}, or a file"
    if Path(value).is_file() or value.startswith(DATABASE) or is_of_the_hub(value):
        return None
    return (
        f"there is no file {value!r} (paths are taken from where the command is run); expected a file, a hub id "
        "(owner/name), builtin:<name> or db:<project>"
    )
