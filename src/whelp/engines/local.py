"""The engine of one process: one device, one trunk per base model, a branch per role."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from whelp.engines.base import Held, Metrics, SamplingParams, Term
from whelp.engines.batching import ACCELERATOR, PROCESSOR, pieces, response_index, targets_beside
from whelp.engines.devices import Compute, choose, release_memory
from whelp.engines.held import LocalHeld, own
from whelp.engines.loaded import LocalModel, LocalModels, Member
from whelp.engines.master import MasterWeights
from whelp.engines.sampler import Sampler
from whelp.engines.scoring import token_logprobs, token_logprobs_and_entropy
from whelp.errors import ModelError, RunError, TrainingError
from whelp.maths.outputs import LossSum, Quantity, Rewards, TokenScores, Values
from whelp.maths.posterior import head_posterior
from whelp.models.adapters import merged
from whelp.models.heads import ScalarHead
from whelp.models.layout import Layout, flat, padded, reads_flat, shared
from whelp.models.trunk import LMHead, Trunk
from whelp.text.chat import Chat, end_ids
from whelp.types import Completion, Prompt, Sequences

UPDATES_PER_RELEASE = 8


class LocalEngine(LocalModels):
    """See `Engine`. `chat` renders prompts and decodes answers."""

    writes = True
    """False: this process computes with others, one of which writes what is saved and exported."""

    def __init__(self, chat: Chat, compute: Compute | None = None, temperature: float = 1.0):
        super().__init__(compute or choose())
        self.chat = chat
        self.temperature = temperature
        self.updates = 0
        self.sizes = PROCESSOR if self.compute.device.type == "cpu" else ACCELERATOR
        if self.compute.device.type == "cpu":
            torch.set_num_threads(self.compute.threads)

    # -- sampling -------------------------------------------------------------------------------------------------

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        tokens = [self.chat.prompt(prompt) for prompt in prompts]
        for sampled in self._sampler(model).sample(tokens, [prompt.id for prompt in prompts], params):
            yield Completion(
                prompt=prompts[sampled.prompt],
                text=self.chat.decode(sampled.tokens),
                tokens=sampled.tokens,
                logprobs=sampled.logprobs,
                is_finished=sampled.is_finished,
                sample=sampled.sample,
            )

    def stream(self, model: str, prompt: Prompt, params: SamplingParams) -> Iterator[str]:
        """The first completion that `sample` gives, in pieces of its text as they come."""
        return self.chat.pieces(token for _, token in self.tokens(model, prompt, dataclasses.replace(params, n=1)))

    def tokens(self, model: str, prompt: Prompt, params: SamplingParams) -> Iterator[tuple[int, int]]:
        """(sample, token) of the completions that `sample` gives to a prompt, as they are drawn."""
        return self._sampler(model).stream(self.chat.prompt(prompt), prompt.id, params)

    def _sampler(self, model: str) -> Sampler:
        local = self.models[model]
        branch, head = local.members[0].branch, local.members[0].head
        if not isinstance(head, LMHead):
            raise ModelError(f"sample: {model!r} has a scalar head, but a language model is needed here.")
        return Sampler(local.trunk, branch, head, end_ids(self.chat.tokenizer), self.compute, self.sizes)

    def _rest(self, but: str | None = None) -> None:
        """Let go of mapped weights until they are read again, but for those of one model."""
        for name, model in self.models.items():
            if model.mapped is not None and name != but:
                model.mapped.rest()

    # -- scoring --------------------------------------------------------------------------------------------------

    @contextmanager
    def hold(self, sequences: Sequences) -> Iterator[LocalHeld]:
        held = LocalHeld(sequences, {}, range(len(sequences)))
        try:
            yield held
        finally:
            held.cache.clear()
            release_memory()

    def _trunk_outputs(self, trunk: Trunk, held: LocalHeld) -> list[Tensor]:
        """Row by row, [L H]; made for all rows of a selection that are not there yet."""
        cache = held.cache.setdefault(trunk.key, {})
        missing = [i for i, row in enumerate(held.rows) if row not in cache]
        left = held.select(missing)
        for rows in self._pieces(trunk.decoder, left, self.sizes.piece) if missing else ():
            piece = left.select(rows)
            tokens = [torch.tensor(t, device=self.compute.device) for t in piece.sequences.tokens]
            outputs = tokens
            if trunk.decoder is not None:
                layout = self._layout(trunk.decoder, piece.sequences)
                hidden = trunk(layout.join(tokens), use_cache=False, **layout.arguments).flatten(0, 1)
                outputs = [hidden[place[: len(t)]] for place, t in zip(layout.place, tokens, strict=True)]
            for row, output in zip(piece.rows, outputs, strict=True):
                cache[row] = output
        return [cache[row] for row in held.rows]

    def _layout(self, decoder: nn.Module, sequences: Sequences) -> Layout:
        if reads_flat(decoder):
            return flat(sequences.tokens, sequences.group, self.compute.device)
        return padded(sequences.tokens, self.compute.device)

    def _forward(
        self, model: LocalModel, held: LocalHeld, member: Member
    ) -> tuple[Float[Tensor, "N H"], Int[Tensor, "B T"]]:
        """Final hidden states, and where among them each position of each sequence stands."""
        layout = self._layout(member.branch.decoder, held.sequences)
        inputs = layout.join(self._trunk_outputs(model.trunk, held))
        return member.branch(inputs, use_cache=False, **layout.arguments).flatten(0, 1), layout.place

    def _last_hidden(self, model: LocalModel, held: LocalHeld, member: Member) -> Float[Tensor, "B H"]:
        """Final hidden state of every row's last token."""
        hidden, place = self._forward(model, held, member)
        last = torch.tensor([len(tokens) - 1 for tokens in held.sequences.tokens], device=place.device)
        return hidden.index_select(0, place[torch.arange(len(last), device=place.device), last])

    def _outputs(
        self,
        model: LocalModel,
        held: LocalHeld,
        quantity: Quantity,
        *,
        entropy: bool = False,
        members: Sequence[Member] | None = None,
    ) -> Any:
        """`members`: those that give rewards; None: all."""
        sequences = held.sequences
        if quantity == "rewards":
            chosen = model.members if members is None else members
            return Rewards(torch.stack([m.head(self._last_hidden(model, held, m)) for m in chosen]))
        rows, positions, is_response = (t.to(self.compute.device) for t in response_index(sequences.is_response))
        member = model.members[0]
        hidden, place = self._forward(model, held, member)
        # Several answers stand behind one token: unlike indexing, index_select adds their gradients in one order.
        before = hidden.index_select(0, place[rows, positions - 1])
        table = torch.zeros(is_response.shape, device=self.compute.device)
        if quantity == "values":
            return Values(table.masked_scatter(is_response, member.head(before)), is_response)
        targets = torch.tensor([sequences.tokens[r][p] for r, p in zip(rows.tolist(), positions.tolist(), strict=True)])
        targets = targets.to(self.compute.device)
        if not entropy:
            logprobs = token_logprobs(member.head, before, targets, self.temperature)
            return TokenScores(table.masked_scatter(is_response, logprobs), is_response)
        logprobs, entropies = token_logprobs_and_entropy(member.head, before, targets, self.temperature)
        return TokenScores(
            table.masked_scatter(is_response, logprobs), is_response, table.masked_scatter(is_response, entropies)
        )

    def _pieces(self, decoder: nn.Module | None, held: LocalHeld, token_budget: int) -> list[list[int]]:
        """Rows that `decoder` reads in one pass; None: nothing is computed."""
        sequences = held.sequences
        lengths = [len(tokens) for tokens in sequences.tokens]
        if decoder is None or not reads_flat(decoder):
            return pieces(lengths, sequences.group, token_budget, self.sizes.piece_price)
        own = [length - count for length, count in zip(lengths, shared(sequences.tokens, sequences.group), strict=True)]
        return pieces(lengths, sequences.group, token_budget, self.sizes.piece_price, own)

    @torch.no_grad()
    def logprobs(self, model: str, held: Held) -> TokenScores:
        held = own(held, LocalHeld)
        self._rest(but=model)
        batch, width = len(held.sequences), max(held.sequences.response_lengths, default=0)
        logprobs, entropy = torch.zeros(batch, width), torch.zeros(batch, width)
        is_response = torch.zeros(batch, width, dtype=torch.bool)
        for rows in self._pieces(self.models[model].decoder, held, self.sizes.training_piece):
            scores = self._outputs(self.models[model], held.select(rows), "logprobs", entropy=True)
            here = slice(scores.logprobs.shape[1])
            logprobs[rows, here] = scores.logprobs.cpu()
            entropy[rows, here] = scores.entropy.cpu()
            is_response[rows, here] = scores.is_response.cpu()
        return TokenScores(logprobs, is_response, entropy)

    @torch.no_grad()
    def values(self, model: str, held: Held) -> Float[Tensor, "B R"]:
        held = own(held, LocalHeld)
        self._rest(but=model)
        result = torch.zeros(len(held.sequences), max(held.sequences.response_lengths, default=0))
        for rows in self._pieces(self.models[model].decoder, held, self.sizes.training_piece):
            values = self._outputs(self.models[model], held.select(rows), "values").values
            result[rows, : values.shape[1]] = values.cpu()
        return result

    @torch.no_grad()
    def rewards(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        held = own(held, LocalHeld)
        self._rest(but=model)
        local = self.models[model]
        result = torch.zeros(len(local.members), len(held.sequences))
        for rows in self._pieces(local.decoder, held, self.sizes.piece):
            result[:, rows] = self._outputs(local, held.select(rows), "rewards").rewards.cpu()
        return result

    def fit_posterior(self, model: str, held: Held, pairs: float) -> None:
        local = self.models[model]
        for member, features in zip(local.members, self._features(local, own(held, LocalHeld)), strict=True):
            assert isinstance(member.head, ScalarHead)
            member.head.posterior = head_posterior(features, pairs)

    def reward_variance(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        local, held = self.models[model], own(held, LocalHeld)
        result = torch.zeros(len(local.members), held.total)
        posteriors = {i: m.head.posterior for i, m in enumerate(local.members) if isinstance(m.head, ScalarHead)}
        if any(posteriors.values()):
            features = self._features(local, held)
            for i, posterior in posteriors.items():
                if posterior is not None:
                    result[i] = posterior.variance(features[i])
        return result

    @torch.no_grad()
    def _features(self, model: LocalModel, held: LocalHeld) -> Float[Tensor, "M B H"]:
        """What each member's head reads of every row."""
        result = torch.zeros(len(model.members), len(held.sequences), model.trunk.hidden_size)
        for rows in self._pieces(model.decoder, held, self.sizes.piece):
            for features, member in zip(result, model.members, strict=True):
                features[rows] = self._last_hidden(model, held.select(rows), member).float().cpu()
        return result

    # -- training -------------------------------------------------------------------------------------------------

    def update(self, terms: Sequence[Term], lr: Mapping[str, float]) -> Metrics:
        return self._update([(term, term.loss.count(term.targets)) for term in terms], lr)

    def _update(self, counted: Sequence[tuple[Term, float]], lr: Mapping[str, float]) -> Metrics:
        """Terms with what the loss of each is divided by."""
        trained = {term.model: self._trainable(term.model) for term, _ in counted}
        if unnamed := sorted(trained.keys() - lr.keys()):
            raise ModelError(f"no learning rate for {', '.join(unnamed)}: give one for every model among the terms.")
        for weights in trained.values():
            weights.zero_grad()
        self._set_aside()
        try:
            metrics = self._gradients(counted, trained.values())
            for name, weights in trained.items():
                metrics[f"{name}/grad_norm"] = weights.clip()
            _refuse_nan(metrics)
        except TrainingError:
            for weights in trained.values():
                weights.zero_grad()
            raise
        for name, weights in trained.items():
            weights.step(lr[name])
        self.updates += 1
        if self.updates % UPDATES_PER_RELEASE == 0:
            release_memory()
        return metrics

    def _set_aside(self) -> None:
        """What this step does not read."""
        for model in self.models.values():
            model.map()
        self._rest()

    def _gradients(self, counted: Sequence[tuple[Term, float]], trained: Iterable[MasterWeights]) -> Metrics:
        metrics: Metrics = {}
        named: set[str] = set()
        for term, count in counted:
            if count == 0:
                continue
            # A second term of a model reports under its member or its loss, so that neither hides the other.
            what = type(term.loss).__name__ if term.member is None else f"member-{term.member}"
            prefix = f"{term.model}/{what}" if term.model in named or term.member is not None else term.model
            named.add(term.model)
            metrics |= self._accumulate(term, count, trained, prefix)
        return metrics

    def _trainable(self, name: str) -> MasterWeights:
        weights = self.models[name].weights
        if weights is None:
            raise ModelError(f"model {name!r} is frozen: give its ModelSpec an optimizer to train it.")
        return weights

    def _accumulate(self, term: Term, count: float, trained: Iterable[MasterWeights], prefix: str) -> Metrics:
        """Gradients of one term, piece by piece, each already divided by the count of the whole term. With a shared branch they
        reach more models than the term's own."""
        totals: dict[str, float] = {}
        whole, model = own(term.held, LocalHeld), self.models[term.model]
        members = None if term.member is None else [model.members[term.member]]
        for rows in self._training_pieces(model, whole):
            held = whole.select(rows)
            outputs = self._outputs(model, held, term.loss.quantity, members=members)
            result: LossSum = term.loss(outputs, targets_beside(outputs, term.targets, rows))
            (result.loss * (term.coef / count)).backward()
            for weights in trained:
                weights.collect()
            for key, value in result.sums.items():
                totals[key] = totals.get(key, 0.0) + float(value) / count
        return {f"{prefix}/{key}": value for key, value in totals.items()}

    def _training_pieces(self, model: LocalModel, held: LocalHeld) -> list[list[int]]:
        """Rows that are computed at one time with gradients."""
        depth = self.sizes.training_depth
        return self._pieces(model.decoder, held, self.sizes.training_piece * depth // max(depth, model.layers))

    # -- state ----------------------------------------------------------------------------------------------------

    def save_state(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for name, model in self.models.items():
            if model.weights is not None:
                state = {key: tensor.contiguous().cpu() for key, tensor in model.weights.state().items()}
                if self.writes:
                    save_file(state, path / f"{name}.safetensors")

    def load_state(self, path: Path) -> None:
        for name, model in self.models.items():
            if model.weights is None:
                continue
            file = path / f"{name}.safetensors"
            try:
                model.weights.load(load_file(file, device=str(self.compute.device)))
            except (OSError, RuntimeError, SafetensorError) as error:
                raise RunError(
                    f"{file} does not hold the state of {name!r} ({error}). The checkpoint belongs to another model or recipe; "
                    "start again without --resume."
                ) from error

    def export(self, model: str, path: Path, gain: float = 1.0, **config: Any) -> None:
        local = self.models[model]
        members = [(m.branch, m.head) for m in local.members]
        local.source.export(path, local.spec.head, members, gain, config, self._state_of, self.writes)

    def _state_of(self, module: nn.Module) -> Mapping[str, Tensor]:
        return dict(merged(module))


def _refuse_nan(metrics: Metrics) -> None:
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(f"not finite: {', '.join(bad)}; no weight was changed by this step")
