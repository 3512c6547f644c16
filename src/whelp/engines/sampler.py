"""Continuous batching over a preallocated cache: finished rows make room for waiting prompts at once."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from whelp.engines.base import SamplingParams
from whelp.engines.batching import PROCESSOR, Sizes, pieces
from whelp.engines.devices import Compute
from whelp.engines.scoring import blocks
from whelp.models.cache import SlotCache, forward
from whelp.models.layout import pad_right
from whelp.models.trunk import Branch, Cut, LMHead, Trunk

REFILL = 8
"""Rows that must be free before waiting prompts are prefilled, so that a prefill serves several."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One finished answer: `prompt` is the index of its prompt."""

    prompt: int
    sample: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_finished: bool


@dataclass(slots=True)
class Row:
    """An answer in the making."""

    prompt: int
    sample: int
    length: int
    """Tokens whose keys and values stand in the cache."""
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Sampler:
    """Samples from trunk + branch + head as they are now: nothing is copied, so nothing can be stale."""

    def __init__(
        self,
        trunk: Trunk,
        branch: Branch,
        head: LMHead,
        end_ids: Sequence[int],
        compute: Compute,
        sizes: Sizes = PROCESSOR,
    ):
        self.parts = Cut(trunk, branch, head)
        self.head = head
        self.end_ids = frozenset(end_ids)
        self.device = compute.device
        self.sizes = sizes
        below = trunk.decoder.config.num_hidden_layers if trunk.decoder else 0
        self.layers = below + branch.decoder.config.num_hidden_layers

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[tuple[int, ...]], names: Sequence[str], params: SamplingParams
    ) -> Iterator[Sampled]:
        """`params.n` answers to every prompt, in the order in which they finish."""
        waiting = deque((p, s) for p in range(len(prompts)) for s in range(params.n))
        if not waiting:
            return
        slots = min(self.sizes.slots, len(waiting))
        cache = SlotCache(self.layers, slots, max(len(p) for p in prompts) + params.max_new_tokens)
        rows: list[Row] = []
        while rows or waiting:
            if waiting and (not rows or slots - len(rows) >= min(REFILL, len(waiting))):
                rows += self._admit(prompts, names, waiting, cache, len(rows), slots, params)
            else:
                self._step(rows, cache, params)
            for index in reversed(range(len(rows))):
                row = rows[index]
                if self._has_ended(row, params):
                    is_finished = row.tokens[-1] in self.end_ids
                    yield Sampled(row.prompt, row.sample, tuple(row.tokens), tuple(row.logprobs), is_finished)
                    self._free(rows, index, cache)

    @torch.no_grad()
    def stream(self, prompt: tuple[int, ...], name: str, params: SamplingParams) -> Iterator[tuple[int, int]]:
        """(sample, token) of the answers that `sample` gives to a prompt, as they are drawn."""
        cache = SlotCache(self.layers, params.n, len(prompt) + params.max_new_tokens)
        waiting = deque((0, s) for s in range(params.n))
        rows = self._admit([prompt], [name], waiting, cache, 0, params.n, params)
        while True:
            yield from [(row.sample, row.tokens[-1]) for row in rows]
            for index in reversed(range(len(rows))):
                if self._has_ended(rows[index], params):
                    self._free(rows, index, cache)
            if not rows:
                return
            self._step(rows, cache, params)

    def _admit(
        self,
        prompts: Sequence[tuple[int, ...]],
        names: Sequence[str],
        waiting: deque[tuple[int, int]],
        cache: SlotCache,
        first: int,
        slots: int,
        params: SamplingParams,
    ) -> list[Row]:
        """Prefill waiting prompts into the free rows, each prompt once, and draw their first tokens."""
        taken = [waiting.popleft() for _ in range(min(slots - first, len(waiting)))]
        new = [Row(p, s, len(prompts[p]), uniforms(params.key, names[p], s, params.max_new_tokens)) for p, s in taken]
        places: dict[int, list[int]] = {}
        for offset, row in enumerate(new):
            places.setdefault(row.prompt, []).append(first + offset)
        distinct = list(places)
        table: dict[int, Tensor] = {}
        for piece in pieces(
            [len(prompts[p]) for p in distinct], range(len(distinct)), self.sizes.training_piece, self.sizes.piece_price
        ):
            chosen = [distinct[i] for i in piece]
            table |= zip(
                chosen, self._prefill([prompts[p] for p in chosen], [places[p][0] for p in chosen], cache), strict=True
            )
        for prompt, rows in places.items():
            for row in rows[1:]:
                cache.share(rows[0], row, len(prompts[prompt]))
        logits = torch.stack([table[row.prompt] for row in new])
        self._draw(new, logits, params)
        return new

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], rows: Sequence[int], cache: SlotCache
    ) -> Float[Tensor, "B V"]:
        tokens = pad_right([torch.tensor(p) for p in prompts]).to(self.device)
        last = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        cache.prefill(torch.tensor(rows, device=self.device))
        hidden = forward(self.parts, tokens, cache)
        return self.head(hidden[torch.arange(len(prompts), device=self.device), last])

    def _step(self, rows: Sequence[Row], cache: SlotCache, params: SamplingParams) -> None:
        """One more token for every row."""
        newest = torch.tensor([[row.tokens[-1]] for row in rows], device=self.device)
        positions = torch.tensor([row.length for row in rows], device=self.device)
        cache.decode(positions)
        hidden = forward(self.parts, newest, cache)
        for row in rows:
            row.length += 1
        self._draw(rows, self.head(hidden[:, 0]), params)

    def _draw(self, rows: Sequence[Row], logits: Float[Tensor, "B V"], params: SamplingParams) -> None:
        u = torch.tensor([row.uniforms[len(row.tokens)] for row in rows], device=self.device)
        tokens, logprobs = draw(logits, u, params.temperature)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)

    def _has_ended(self, row: Row, params: SamplingParams) -> bool:
        return row.tokens[-1] in self.end_ids or len(row.tokens) == params.max_new_tokens

    def _free(self, rows: list[Row], index: int, cache: SlotCache) -> None:
        """Take a row out; the last one moves into its place, so that live rows stay the first ones."""
        last = rows.pop()
        if index < len(rows):
            cache.share(len(rows), index, last.length)
            rows[index] = last


def draw(
    logits: Float[Tensor, "B V"], u: Float[Tensor, "B"], temperature: float
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """The token at quantile u of each distribution, and its log-probability; temperature 0 takes the likeliest."""
    parts = [_draw(rows, at, temperature) for rows, at in zip(blocks(logits), blocks(u), strict=True)]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _draw(
    logits: Float[Tensor, "B V"], u: Float[Tensor, "B"], temperature: float
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    logits = logits.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
    logprobs = torch.log_softmax(logits / temperature, -1)
    cumulative = logprobs.exp().cumsum(-1)
    target = u[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).clamp_max(logits.shape[-1] - 1)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def uniforms(key: Sequence[int | str], prompt: str, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1), fixed by (key, prompt, sample, position) and nothing else."""
    digest = hashlib.sha256(repr((tuple(key), prompt, sample)).encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.random(count, dtype=np.float32)
