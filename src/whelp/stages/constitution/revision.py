"""Critique and revision: the model says what is wrong with its own answers by written principles, and writes them again
(Bai et al. 2022, Constitutional AI, section 3)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from whelp.config import ConstitutionConfig
from whelp.engines.base import Engine, SamplingParams
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Stage, answers_in_order
from whelp.types import Message, Principle, Prompt

CHAINS = "chains.jsonl"
AT_ONCE = 64
Quality = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float]]
"""How good each answer is, by a reward model of the training."""
Fate = Literal["kept", "empty", "cut off", "a copy", "worse"]
FATES: tuple[Fate, ...] = ("kept", "empty", "cut off", "a copy", "worse")


@dataclass(frozen=True, slots=True)
class Round:
    """What a principle made of an answer."""

    principle: str
    """Its id."""
    critique: str
    revision: str


@dataclass(frozen=True, slots=True)
class Chain:
    """An answer and what became of it, round after round."""

    prompt: Prompt
    answer: str
    rounds: tuple[Round, ...]
    is_finished: bool
    """True: the model ended its last revision; False: it was cut off at the length limit."""

    @property
    def revision(self) -> str:
        """The last one."""
        return self.rounds[-1].revision


def write(
    engine: Engine, prompts: Sequence[Prompt], principles: Sequence[Principle], config: ConstitutionConfig, stage: Stage
) -> list[Chain]:
    """A chain for every prompt by the engine's "policy", each kept in `CHAINS` as soon as it is whole: what stands there already
    is not written again."""
    log = MetricsLog(stage.folder, CHAINS)
    known = {prompt.id: prompt for prompt in prompts}
    done = [_read(row, known[row["id"]]) for row in log.whole()]
    with stage.listening(), stage.progress.steps("critique and revision", len(prompts)) as bar:
        bar.advance(len(done))
        while len(done) < len(prompts):
            batch = prompts[len(done) : len(done) + AT_ONCE]
            for chain in chains(engine, batch, principles, config, stage.seed):
                done.append(chain)
                log.append(len(done), **_row(chain, config, stage.seed))
            stage.log.append(len(done), chains=len(done), revised=sum(c.revision != c.answer for c in done) / len(done))
            bar.advance(len(batch))
            stage.heed(len(done), len(prompts))
    return done


def chains(
    engine: Engine, prompts: Sequence[Prompt], principles: Sequence[Principle], config: ConstitutionConfig, seed: int
) -> list[Chain]:
    """Answer, then `config.rounds` times: critique under a principle that is drawn anew, and revision."""

    def say(what: str, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[str, bool]]:
        asked = [replace(prompt, messages=said) for prompt, said in zip(prompts, conversations, strict=True)]
        params = SamplingParams(1, config.temperature, config.max_new_tokens, ("constitution", seed, what))
        return [(c.text.strip(), c.is_finished) for c in answers_in_order(engine, "policy", asked, params)]

    answers = said = say("answer", [prompt.messages for prompt in prompts])
    rounds: list[list[Round]] = [[] for _ in prompts]
    for number in range(config.rounds):
        chosen = [drawn(principles, seed, prompt.id, number) for prompt in prompts]
        asked = [
            (*prompt.messages, Message("assistant", text), Message("user", principle.critique))
            for prompt, (text, _), principle in zip(prompts, said, chosen, strict=True)
        ]
        critiques = say(f"critique {number}", asked)
        asked = [
            (*before, Message("assistant", critique), Message("user", principle.revision))
            for before, (critique, _), principle in zip(asked, critiques, chosen, strict=True)
        ]
        said = say(f"revision {number}", asked)
        for row, principle, (critique, _), (revision, _) in zip(rounds, chosen, critiques, said, strict=True):
            row.append(Round(principle.id, critique, revision))
    return [
        Chain(prompt, answer, tuple(row), is_finished)
        for prompt, (answer, _), row, (_, is_finished) in zip(prompts, answers, rounds, said, strict=True)
    ]


def drawn(principles: Sequence[Principle], seed: int, prompt: str, number: int) -> Principle:
    """Uniformly, and for a prompt and round always the same."""
    return random.Random(f"{seed}/{prompt}/{number}").choice(principles)


def sift(chains: Sequence[Chain], quality: Quality | None) -> dict[Fate, list[Chain]]:
    """The chains by what becomes of their last revisions. `quality` None: none is found worse than its answer."""
    fates: dict[Fate, list[Chain]] = {fate: [] for fate in FATES}
    for chain in chains:
        fates[_surface_fate(chain)].append(chain)
    if quality is not None and fates["kept"]:
        usable = fates["kept"]
        before = quality([(chain.prompt, chain.answer) for chain in usable])
        after = quality([(chain.prompt, chain.revision) for chain in usable])
        worse = [a < b for a, b in zip(after, before, strict=True)]
        fates["kept"] = [chain for chain, is_worse in zip(usable, worse, strict=True) if not is_worse]
        fates["worse"] = [chain for chain, is_worse in zip(usable, worse, strict=True) if is_worse]
    return fates


def _surface_fate(chain: Chain) -> Fate:
    if not chain.revision.strip():
        return "empty"
    if not chain.is_finished:
        return "cut off"
    return "a copy" if _words(chain.revision) == _words(chain.answer) else "kept"


def _words(text: str) -> list[str]:
    return text.casefold().split()


def demonstration(chain: Chain) -> dict[str, Any]:
    """The record of a prompt with its revised answer."""
    return {
        "id": f"{chain.prompt.id}-revised",
        "category": chain.prompt.category,
        "prompt": [m.as_dict() for m in chain.prompt.messages],
        "completion": chain.revision,
        "principles": [one.principle for one in chain.rounds],
    }


def _row(chain: Chain, config: ConstitutionConfig, seed: int) -> dict[str, Any]:
    return {
        "id": chain.prompt.id,
        "prompt": [m.as_dict() for m in chain.prompt.messages],
        "answer": chain.answer,
        "rounds": chain.rounds,
        "is_finished": chain.is_finished,
        "sampling": {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens, "seed": seed},
    }


def _read(row: Mapping[str, Any], prompt: Prompt) -> Chain:
    return Chain(prompt, row["answer"], tuple(Round(**one) for one in row["rounds"]), row["is_finished"])
