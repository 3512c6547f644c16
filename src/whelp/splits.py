"""Who may learn from what: splits by what is said first, and prompts that must not stand on both sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whelp.config import Recipe
from whelp.errors import DataError
from whelp.text.formats import Loaded, prompt_hash, read_rankings, split_by_hash, without_contradictions
from whelp.types import Demonstration, Message, Prompt, Ranking

MOST_SHARED = 0.1
"""Of a judge's user turns, that may have taught the models that it judges."""


@dataclass(frozen=True, slots=True)
class RankingSplit:
    """Who learns from which rankings: each side is the other's held-out set where there is a judge."""

    loaded: Loaded[Ranking]
    test: Loaded[Ranking] | None
    train: Sequence[Ranking]
    held_out: Sequence[Ranking]


def split_demonstrations(
    loaded: Loaded[Demonstration], test_fraction: float
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """Those that train, and the share held out by what the user says first, whatever system message stands before it.

    Raises `DataError` where nothing is left to train on.
    """
    train, held_out = split_by_hash(loaded.records, lambda d: begun(d.messages), 1 - test_fraction, "sft")
    if not train:
        raise DataError(
            f"{loaded.path} holds {len(loaded.records)} demonstrations, of which sft.test_fraction {test_fraction} leaves "
            "none to train on. Give more, or lower sft.test_fraction."
        )
    return train, held_out


def has_judge(recipe: Recipe) -> bool:
    """True where the reward model or DPO leaves rankings to a judge. It does so whether this command evaluates or a later one
    will: otherwise leaving a stage out would train the others again."""
    learns = {"reward", "dpo"} & set(recipe.stages)
    return bool(learns) and recipe.evaluate.judge and recipe.reward.test_file is None


def held_out_fraction(recipe: Recipe) -> float:
    """Share of the rankings' prompts that the reward model or DPO does not learn from, where there is no test file."""
    return recipe.evaluate.judge_fraction if has_judge(recipe) else recipe.reward.test_fraction


def split_rankings(recipe: Recipe) -> RankingSplit:
    """By what the user says first, so that no part of a conversation is on both sides: the judge's share where one is to be
    trained, a test fraction otherwise; or the user's own test file.

    Raises `DataError` where a prompt of the test file stands in the training file too.
    """
    config = recipe.reward
    read = read_rankings if config.contradictions == "keep" else consistent_rankings
    loaded = read(config.train_file)
    if config.test_file is not None:
        test = read(config.test_file)
        refuse_overlap(config.train_file, loaded.records, config.test_file, test.records)
        return RankingSplit(loaded, test, loaded.records, test.records)
    train, held_out = split_by_hash(
        loaded.records, lambda r: begun(r.prompt.messages), 1 - held_out_fraction(recipe), "rankings"
    )
    if not train or not held_out:
        setting = "evaluate.judge_fraction" if has_judge(recipe) else "reward.test_fraction"
        raise DataError(
            f"{config.train_file} holds {len(loaded.records)} rankings, of which {len(train)} would train and {len(held_out)} be "
            f"held out; expected some of both. Give more, another {setting}, or a reward.test_file."
        )
    return RankingSplit(loaded, None, train, held_out)


def consistent_rankings(path: str) -> Loaded[Ranking]:
    """Raises `DataError` where every ranking contradicts another."""
    loaded = without_contradictions(read_rankings(path))
    if not loaded.records:
        raise DataError(f"{path}: every ranking contradicts another, so that reward.contradictions=drop leaves none.")
    return loaded


def refuse_overlap(train_file: str, train: Sequence[Ranking], test_file: str, test: Sequence[Ranking]) -> None:
    known = {prompt_hash(r.prompt.messages): r.prompt.id for r in train}
    shared = [r.prompt.id for r in test if prompt_hash(r.prompt.messages) in known]
    if shared:
        raise DataError(
            f"{len(shared)} prompts of {test_file} also stand in {train_file} (for example {', '.join(shared[:5])}): a "
            "measurement on them would flatter the model. Take them out of one of the two."
        )


def refuse_trained(trained: set[str], prompts: Sequence[Prompt]) -> None:
    """Raises `DataError` where an evaluation prompt is among the prompts that trained."""
    seen = [p.id for p in prompts if prompt_hash([Message("user", p.text)]) in trained]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(prompts)} evaluation prompts train a model compared here (for example "
            f"{', '.join(seen[:5])}). Take them out: answers to them prove nothing."
        )


def refuse_own_judge(judge: str, learned: set[str], taught: set[str]) -> None:
    """`learned`: hashes of the user turns from which a judge learned; `taught`: those of the rankings behind a policy that it is
    to judge. Raises `DataError` where more than a few are the same (short turns such as "yes" stand in many conversations)."""
    if learned and len(shared := learned & taught) > MOST_SHARED * len(learned):
        raise DataError(
            f"{judge} learned from {len(shared)} of its {len(learned)} user turns as what trained a model compared here did: it "
            "would prefer what that was trained for. Give a judge that learned from other rankings (whelp run trains one)."
        )


def user_turns(conversations: Iterable[Sequence[Message]]) -> list[str]:
    """Hashes of every single user turn, so that a later turn of a conversation is remembered too."""
    return [prompt_hash([message]) for messages in conversations for message in messages if message.role == "user"]


def begun(messages: Sequence[Message]) -> Sequence[Message]:
    """The user's first turn."""
    return [next(message for message in messages if message.role == "user")]
