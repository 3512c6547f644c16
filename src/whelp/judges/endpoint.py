"""A judge behind an address: a language model that is asked which of two answers is better, A or B."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from whelp.endpoints.client import Endpoint, Line
from whelp.endpoints.replies import Kept, NoLogprobs, Request
from whelp.judges.asking import choice, thoughtful_choice
from whelp.judges.base import Comparison, Opinion
from whelp.judges.letters import read
from whelp.types import Message

LETTER_TOKENS = 8


@dataclass(frozen=True)
class EndpointJudge:
    """By the endpoint's log-probabilities of the letter, where it gives them; else, and of a chain of thought, by the share of A
    among `votes` replies."""

    endpoint: Endpoint
    is_thoughtful: bool = False
    votes: int = 5
    max_tokens: int = 1024
    """Longest chain of thought."""

    @property
    def name(self) -> str:
        return f"{self.endpoint.name}, {'thought' if self.is_thoughtful else 'choice'}"

    @property
    def is_voting(self) -> bool:
        """Whether its probabilities are shares of votes, by all that is known: an endpoint that gives no log-probabilities is
        known by its first reply."""
        endpoint = self.endpoint
        return self.is_thoughtful or endpoint.provider == "anthropic" or "logprobs" in endpoint.ledger.refused

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        """First what was answered before, then the rest as it comes. Raises as `Endpoint.each` does."""
        return self.endpoint.each(
            len(comparisons),
            lambda place: self._kept(comparisons[place]),
            lambda line, place: self._asked(line, comparisons[place]),
        )

    def _kept(self, comparison: Comparison) -> Opinion | None:
        """What was answered before, by log-probabilities or by votes."""
        for requests in (self.single(comparison), self.several(comparison)):
            if (found := self.endpoint.kept(requests)) is not None:
                return self._opinion(found)
        return None

    def _asked(self, line: Line, comparison: Comparison) -> Opinion:
        reading = partial(read, is_thoughtful=self.is_thoughtful)
        if not self.is_voting:
            try:
                return self._opinion([line.answer(request, reading) for request in self.single(comparison)])
            except NoLogprobs:
                self.endpoint.ledger.refused.add("logprobs")
        return self._opinion([line.answer(request, reading) for request in self.several(comparison)])

    def single(self, comparison: Comparison) -> list[Request]:
        """How log-probabilities are asked for."""
        can = self.endpoint.provider == "openai" and not self.is_thoughtful
        return [self._request(choice(comparison), 1, True, 0)] if can else []

    def several(self, comparison: Comparison) -> list[Request]:
        """How votes are asked for."""
        question = thoughtful_choice(comparison) if self.is_thoughtful else choice(comparison)
        longest = self.max_tokens if self.is_thoughtful else LETTER_TOKENS
        return [self._request(question, longest, False, vote) for vote in range(self.votes)]

    def _request(self, question: str, max_tokens: int, has_logprobs: bool, vote: int) -> Request:
        return self.endpoint.request([Message("user", question)], max_tokens, 1.0, has_logprobs, vote)

    def _opinion(self, kept: Sequence[Kept]) -> Opinion:
        reasoning = kept[0].reply["text"] if self.is_thoughtful else ""
        return Opinion(fmean(one.reply["first"] for one in kept), reasoning, math.fsum(one.cost for one in kept))
