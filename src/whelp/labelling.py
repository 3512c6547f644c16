"""The loop around people's votes: a model answers, people rank, a reward model learns, and what it doubts is asked next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

from jaxtyping import Float
from torch import Tensor

from whelp.config import Recipe
from whelp.conversation import Speaker
from whelp.engines.base import SamplingParams
from whelp.errors import DataError
from whelp.feedback.store import Store
from whelp.feedback.verdicts import opposed
from whelp.maths.posterior import expected_preference
from whelp.progress import Progress
from whelp.runs.manifest import Run
from whelp.scorers import reward_engine
from whelp.text.chat import sequences
from whelp.text.items import items_of
from whelp.types import Prompt
from whelp.workplace import Workplace

FEWEST, FEW = 10, 100
"""Votes without which there is no training, and below which a larger share is held out: of a few prompts nothing is learned about
the model."""
READINGS, MOST_EPOCHS = 240, 6
"""Votes that are read in all, where there are fewer: 30 steps of 8."""


def sample_items(
    store: Store, project: int, prompts: Sequence[Prompt], model: str, params: SamplingParams, progress: Progress
) -> tuple[int, int]:
    """Add what `model` answers; (items that are new, prompts to which it had only one thing to say). Raises `DataError` for
    prompts that are too long for it."""
    speaker = Speaker(model, params)
    answers: dict[str, list[str]] = defaultdict(list)
    with progress.steps("sampling", len(prompts) * params.n) as bar:
        for completion in speaker.sample(prompts):
            answers[completion.prompt.id].append(completion.text)
            bar.advance(1)
    items = items_of(prompts, answers, model)
    return store.add_items(project, items), len(prompts) - len(items)


def order_by_doubt(store: Store, project: int, recipe: Recipe, folder: Path, progress: Progress) -> int:
    """Ask first for what the reward model of `folder` is least sure of and people are most at odds about; how many items there
    are to ask for."""
    wanted = store.wanted(project)
    items = [item for item in store.items(project) if item.id in wanted]
    if not items:
        return 0
    engine = reward_engine(Workplace(recipe, Run(folder.parent), progress), folder)
    gain = getattr(engine.config("reward"), "reward_gain", 1.0)
    prompts = [Prompt(str(item.id), item.messages) for item in items]
    rendered = [
        engine.chat.answer(prompt, text)
        for prompt, item in zip(prompts, items, strict=True)
        for text in item.completions
    ]
    with engine.hold(sequences(rendered)) as held:
        rewards = engine.rewards("reward", held) / gain
        variance = engine.reward_variance("reward", held) / gain**2
    said: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for vote in store.votes(project):
        said[vote.item].append(vote.ranks)
    counts = [len(item.completions) for item in items]
    rows = zip(items, rewards.split(counts, 1), variance.split(counts, 1), strict=True)
    store.prioritise(project, {item.id: doubt(r, v) + opposed(said[item.id]) for item, r, v in rows})
    return len(items)


def doubt(rewards: Float[Tensor, "M K"], variance: Float[Tensor, "M K"]) -> float:
    """How unsure the members of a reward model are of the order of K answers: 0 where they know it, 1 where they would toss a
    coin; the mean over the pairs. The variance of a difference is that over the members, and the mean within each, taken as
    if the two answers' rewards erred on their own."""
    found = []
    for a, b in combinations(range(rewards.shape[1]), 2):
        margin = rewards[:, a] - rewards[:, b]
        spread = margin.var(correction=0) + (variance[:, a] + variance[:, b]).mean()
        found.append(1.0 - (2.0 * expected_preference(margin.mean(), spread) - 1.0).abs().item())
    return mean(found)


def settings_for(votes: int) -> dict[str, str]:
    """How a reward model learns from so many votes. Raises `DataError` where there is nothing to learn from and to hold out."""
    if votes < FEWEST:
        raise DataError(f"there are {votes} votes, and a reward model needs {FEWEST} to begin with; label some more.")
    settings = {"reward.num_train_epochs": str(min(MOST_EPOCHS, -(-READINGS // votes)))}
    if votes < FEW:
        settings["reward.test_fraction"] = "0.3"
    return settings | {"reward.learning_curve": "[0.25, 0.5]"}
