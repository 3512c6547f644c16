"""The nouns of the project.

Shapes, everywhere: B sequences, T tokens, R response tokens, V vocabulary, K completions of one prompt, H hidden
size, M ensemble members, N rows of a flat list. A mask is named for what True means: `is_response[b, t]` is True
where token t of sequence b was written by the assistant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Principle:
    """One line of a constitution, as the requests that a model is given (Bai et al. 2022, Constitutional AI)."""

    id: str
    value: Literal["helpful", "honest", "harmless", "autonomy"]
    principle: str
    critique: str
    """Asks for what is wrong with the last answer."""
    revision: str
    """Asks for the answer again, without it."""
    comparison: str
    """Asks which of two answers, A or B, is better."""


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with a plain, good answer, and what a reward model may like better. What is None is not known of this case."""

    id: str
    category: str
    prompt: str
    answer: str
    paraphrase: str | None = None
    """The answer in other words: as good as it."""
    wrong: str | None = None
    """An answer like it that is wrong."""
    claim: str | None = None
    """What is wrong, in the words of a user who believes it."""
    agrees: str | None = None
    """An answer that agrees with the claim."""
    other_language: str | None = None
    """The answer in a language in which nobody asked."""
    topic_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked: a conversation that ends with the user's turn."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""
    check: Mapping[str, Any] | None = None
    """What a good answer must do, for `whelp.checkers.passes`; None where only people or a judge can tell."""
    pair: str | None = None
    """Id shared by a false claim and its true twin."""

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer to a prompt.

    `tokens` are the response tokens, the end-of-turn token included when the model gave one; `logprobs` are the
    behaviour log-probabilities of those tokens, as the sampler saw them (kept to measure its mismatch, never trained on).
    """

    prompt: Prompt
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_finished: bool
    """True when the model ended its turn; False when it was cut off at the length limit."""
    sample: int = 0
    """0 <= sample < K: which of the K completions of the prompt this is."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation whose assistant turns are to be imitated."""

    id: str
    messages: tuple[Message, ...]
    category: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt with their ranks: 1 is best, equal ranks are ties."""

    prompt: Prompt
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    source: str = "human"
    probability: float = 1.0
    """How likely the better of two answers is better, from 0.5 to 1: below 1 a soft label."""
    margin: float = 0.0
    """What a reward model is to put the better answer ahead by: more, where people saw a larger difference."""
    weight: float = 1.0
    """How much the ranking counts beside others: less, where its annotator is less reliable."""

    def pairs(self) -> list[Preference]:
        """All C(K, 2) comparisons; a tie is a pair with probability 0.5."""
        pairs = []
        for i in range(len(self.completions)):
            for j in range(i + 1, len(self.completions)):
                better, worse = (i, j) if self.ranks[i] <= self.ranks[j] else (j, i)
                probability = 0.5 if self.ranks[i] == self.ranks[j] else self.probability
                pairs.append(
                    Preference(self.prompt, self.completions[better], self.completions[worse], probability, self.source)
                )
        return pairs


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: `probability` is that of `chosen` being the better one (1.0 certain, 0.5 a tie)."""

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float = 1.0
    source: str = "human"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval and the number of independent units behind it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token sequences with the positions that count, unpadded.

    `group[b]` joins the K completions of one prompt: an engine never splits a group over two gradient pieces, and may compute
    once what they begin with.
    """

    tokens: Sequence[tuple[int, ...]]
    is_response: Sequence[tuple[bool, ...]]
    group: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", tuple(range(len(self.tokens))))
        for tokens, mask in zip(self.tokens, self.is_response, strict=True):
            if len(tokens) != len(mask):
                raise ValueError(f"a sequence of {len(tokens)} tokens has a response mask of {len(mask)}")
            if mask and mask[0]:
                raise ValueError("the first token of a sequence has no context and cannot be a response token")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def response_lengths(self) -> list[int]:
        return [sum(mask) for mask in self.is_response]

    def select(self, rows: Sequence[int]) -> Sequences:
        return Sequences(
            [self.tokens[r] for r in rows], [self.is_response[r] for r in rows], [self.group[r] for r in rows]
        )
