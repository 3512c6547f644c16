"""Judges that run here: a language model that is asked, exact by its log-probabilities, and a reward model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Engine, SamplingParams
from whelp.judges.asking import LETTERS, choice, letter_alone, thoughtful_choice, verdict
from whelp.judges.base import Comparison, Opinion
from whelp.text.chat import Chat, sequences
from whelp.types import Message, Principle, Prompt, Ranking

Way = Literal["choice", "verdict", "thought"]
WORDS: dict[Way, tuple[str, str]] = {"choice": LETTERS, "thought": LETTERS, "verdict": ("yes", "no")}
AT_ONCE = 32
GREEDY = SamplingParams(temperature=0.0)
Answer = tuple[tuple[Message, ...], str, Principle]
"""A conversation, an answer to it and the principle that it is to keep."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question with the word that answers it, put before every question (few-shot)."""

    question: str
    word: str

    @property
    def turns(self) -> tuple[Message, Message]:
        return Message("user", self.question), Message("assistant", self.word)


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model of the engine.

    `choice` asks which of two answers is better, A or B. `thought` asks the same, lets the model write first, and then reads the
    letter (Bai et al. 2022, section 4.1). `verdict` asks of each answer whether it keeps the principle, yes or no, and compares
    the two log-odds: a small model that has no sense of A and B may still have one of yes and no.
    """

    engine: Engine
    chat: Chat
    model: str
    way: Way = "choice"
    examples: tuple[Example, ...] = ()
    thinking: SamplingParams = GREEDY

    @property
    def name(self) -> str:
        shown = f", {len(self.examples)} examples" if self.examples else ""
        return f"{self.model}, {self.way}{shown}"

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        ask = {"choice": self._choices, "thought": self._thoughts, "verdict": self._verdicts}[self.way]
        for start in range(0, len(comparisons), AT_ONCE):
            yield from enumerate(ask(comparisons[start : start + AT_ONCE]), start)

    def _choices(self, comparisons: Sequence[Comparison]) -> list[Opinion]:
        odds = self.log_odds([(Message("user", choice(comparison)),) for comparison in comparisons])
        return [Opinion(p) for p in torch.sigmoid(odds).tolist()]

    def _thoughts(self, comparisons: Sequence[Comparison]) -> list[Opinion]:
        asked = [(Message("user", thoughtful_choice(comparison)),) for comparison in comparisons]
        prompts = [Prompt(str(place), messages) for place, messages in enumerate(asked)]
        thoughts = {c.prompt.id: c.text.strip() for c in self.engine.sample(self.model, prompts, self.thinking)}
        thought = [thoughts[prompt.id] for prompt in prompts]
        odds = self.log_odds(
            [
                (*messages, Message("assistant", text), Message("user", letter_alone()))
                for messages, text in zip(asked, thought, strict=True)
            ]
        )
        return [Opinion(p, text) for p, text in zip(torch.sigmoid(odds).tolist(), thought, strict=True)]

    def _verdicts(self, comparisons: Sequence[Comparison]) -> list[Opinion]:
        def keeps(answers: Sequence[Answer]) -> Float[Tensor, "N"]:
            return self.log_odds([(Message("user", verdict(m, text, p.principle)),) for m, text, p in answers])

        return by_answer(comparisons, keeps)

    def log_odds(self, asked: Sequence[tuple[Message, ...]]) -> Float[Tensor, "N"]:
        """Of the first word of `WORDS` against the second, as the answer to each conversation."""
        shown = tuple(turn for example in self.examples for turn in example.turns)
        rendered = [
            self.chat.answer(Prompt(str(i), (*shown, *messages)), word)
            for i, messages in enumerate(asked)
            for word in WORDS[self.way]
        ]
        group = [row // 2 for row in range(len(rendered))]
        with self.engine.hold(sequences(rendered, group)) as held:
            # The word's first token; its end of turn is no news.
            first = self.engine.logprobs(self.model, held).logprobs[:, 0]
        return first[0::2] - first[1::2]


@dataclass(frozen=True)
class RewardJudge:
    """A reward model of the engine: by Bradley and Terry the log-odds of two answers are the difference of their scores.

    `gain` is what its scores were multiplied with behind training. `is_conditioned`: it reads each answer with the principle
    before the conversation.
    """

    engine: Engine
    chat: Chat
    model: str
    gain: float = 1.0
    is_conditioned: bool = False

    @property
    def name(self) -> str:
        return f"a reward model of people's rankings{', told the principle' * self.is_conditioned}"

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        if not self.is_conditioned:  # then an answer has one score whatever the principle
            comparisons = [replace(comparison, principle=comparisons[0].principle) for comparison in comparisons]
        for start in range(0, len(comparisons), AT_ONCE):
            yield from enumerate(by_answer(comparisons[start : start + AT_ONCE], self.scores), start)

    def scores(self, answers: Sequence[Answer]) -> Float[Tensor, "N"]:
        """In units of log-odds."""
        asked = [self._told(messages, principle) for messages, _, principle in answers]
        rendered = [self.chat.answer(Prompt("", m), text) for m, (_, text, _) in zip(asked, answers, strict=True)]
        with self.engine.hold(sequences(rendered)) as held:
            return self.engine.rewards(self.model, held).mean(0) / self.gain

    def _told(self, messages: tuple[Message, ...], principle: Principle) -> tuple[Message, ...]:
        if not self.is_conditioned:
            return messages
        system = [m.content for m in messages if m.role == "system"]
        rest = tuple(m for m in messages if m.role != "system")
        return (Message("system", "\n\n".join([*system, principle.principle])), *rest)


def by_answer(
    comparisons: Sequence[Comparison], score: Callable[[Sequence[Answer]], Float[Tensor, "N"]]
) -> list[Opinion]:
    """Each comparison by the difference of its answers' log-odds; an answer that stands in several is scored once."""
    sides = [[(c.messages, text, c.principle) for text in (c.first, c.second)] for c in comparisons]
    answers = list(dict.fromkeys(answer for pair in sides for answer in pair))
    scores = dict(zip(answers, score(answers).tolist(), strict=True))
    margin = torch.tensor([scores[first] - scores[second] for first, second in sides], dtype=torch.float64)
    return [Opinion(p) for p in torch.sigmoid(margin).tolist()]


def examples_of(
    rankings: Sequence[Ranking], principles: Sequence[Principle], way: Way, count: int
) -> tuple[Example, ...]:
    """The best and the worst answer of `count` rankings as questions that are answered, each word as often as the other."""
    chosen = [r for r in rankings if len(set(r.ranks)) > 1][: count if way != "verdict" else -(-count // 2)]
    shown: list[Example] = []
    for i, ranking in enumerate(chosen):
        ranked = sorted(zip(ranking.ranks, ranking.completions, strict=True), key=lambda one: one[0])
        best, worst, principle = ranked[0][1], ranked[-1][1], principles[i % len(principles)]
        messages = ranking.prompt.messages
        if way == "verdict":
            pairs = [(best, "yes"), (worst, "no")]
            shown += [Example(verdict(messages, t, principle.principle), w) for t, w in pairs[:: 1 - 2 * (i % 2)]]
        else:
            order = (best, worst) if i % 2 == 0 else (worst, best)
            shown.append(Example(choice(Comparison("", messages, *order, principle)), LETTERS[i % 2]))
    return tuple(shown[:count])
