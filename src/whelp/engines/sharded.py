"""The engine of several processes that all do the same at the same time, each for prompts of its own (SPMD)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from whelp.engines.base import Held, Metrics, ModelSpec, OptimizerSpec, SamplingParams, Term
from whelp.engines.batching import targets_of
from whelp.engines.devices import Compute, release_memory
from whelp.engines.held import LocalHeld, own
from whelp.engines.loaded import LocalModel
from whelp.engines.local import LocalEngine
from whelp.engines.master import MasterWeights
from whelp.engines.shards import ShardedWeights, shard, state_of, template_of, twins_of, whole
from whelp.maths.outputs import TokenScores
from whelp.models.anatomy import anatomy_of
from whelp.models.loading import Source
from whelp.models.trunk import Branch, Trunk
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt, Sequences


class Share(LocalHeld):
    """The sequences of some prompts. A process without any has one that is not its own: all must compute as often."""

    def __init__(
        self, sequences: Sequences, cache: dict[str, dict[int, Tensor]], rows: Sequence[int], share: Share | None = None
    ):
        super().__init__(sequences, cache, rows)
        self.all_here = share or self
        """Every sequence of which this process may compute the trunk."""
        self.mine: list[int] = []
        """Where this process's sequences stand among those that were asked about."""

    def select(self, rows: Sequence[int]) -> Share:
        share = Share(self.sequences.select(rows), self.cache, [self.rows[r] for r in rows], self.all_here)
        share.mine, share.total = self.mine, self.total
        return share


class Shares:
    """Sequences that all processes know, and the share of them that is computed here."""

    def __init__(self, sequences: Sequences, rank: int, size: int):
        owner = owners(sequences, size)
        own = [row for row, one in enumerate(owner) if one == rank]
        borrowed = sorted(range(len(sequences)), key=lambda row: len(sequences.tokens[row]))[:1]
        rows = own or borrowed
        self.place = {row: place for place, row in enumerate(own)}
        self.here = Share(sequences.select(rows), {}, range(len(rows)))

    def of(self, rows: Sequence[int]) -> Share:
        mine = [place for place, row in enumerate(rows) if row in self.place]
        share = self.here.select([self.place[rows[i]] for i in mine] or [*range(len(self.here.sequences))][:1])
        share.mine, share.total = mine, len(rows)
        return share


def owners(sequences: Sequences, size: int) -> list[int]:
    """The process of each sequence: groups stay together, and the longest go first to whom has least to do."""
    tokens: dict[int, int] = {}
    for group, row in zip(sequences.group, sequences.tokens, strict=True):
        tokens[group] = tokens.get(group, 0) + len(row)
    load, owner = [0] * size, {}
    for group in sorted(tokens, key=lambda group: -tokens[group]):
        owner[group] = load.index(min(load))
        load[owner[group]] += tokens[group]
    return [owner[group] for group in sequences.group]


class ShardedEngine(LocalEngine):
    """One process's part. Every method is called by all processes, with the same arguments but for the shares of sequences."""

    def __init__(self, chat: Chat, compute: Compute, temperature: float = 1.0):
        super().__init__(chat, compute, temperature)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh(compute.device.type, (self.size,))
        self.writes = self.rank == 0
        self.shares: dict[int, Shares] = {}
        self.company: list[list[int]] = []
        """Pieces of the term just learned from that only keep other processes company."""
        self.templates: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        """What a sharded module looks like without its weights."""

    # -- models ---------------------------------------------------------------------------------------------------

    def _load(self, spec: ModelSpec) -> LocalModel:
        model = self._sharded(super()._load(spec), spec)
        plan, source = anatomy_of(model.source.model), model.source
        here = getattr(model.members[0].branch.decoder, plan.layers)
        for decoder in (source.cut.branch.decoder, getattr(source.model, plan.decoder)):
            whole = getattr(decoder, plan.layers)
            _stand_in(here, whole, len(whole) - len(here))
        return model

    def _copy(self, spec: ModelSpec) -> LocalModel:
        return self._sharded(super()._copy(spec), spec)

    def _sharded(self, model: LocalModel, spec: ModelSpec) -> LocalModel:
        layers = anatomy_of(model.source.model).layers
        if model.trunk.decoder is not None:
            shard(model.trunk.decoder, getattr(model.trunk.decoder, layers), self.mesh, is_trained=False)
        for member in model.members:
            if member.branch not in self.templates:
                self.templates[member.branch], self.templates[member.head] = template_of(member.branch, member.head)
            decoder = member.branch.decoder
            is_trained = spec.optimizer is not None and spec.lora is None
            shard(decoder, getattr(decoder, layers), self.mesh, is_trained)
        return model

    def _let_go(self, source: Source, trunk: Trunk) -> None:
        if source.cut.trunk is trunk or trunk.decoder is None:
            return
        plan = anatomy_of(source.model)
        theirs = getattr(trunk.decoder, plan.layers)
        for decoder in (source.cut.trunk.decoder, getattr(source.model, plan.decoder)):
            _stand_in(theirs, getattr(decoder, plan.layers), 0)

    def _twins(self, *modules: nn.Module) -> Any:
        return twins_of([self.templates[module] for module in modules], modules)

    def _beside(self, branch: Branch) -> Branch:
        """On a copy, where the layers are sharded: one share of a weight belongs to one layer."""
        return self._twins(branch)[0] if branch in self.templates else super()._beside(branch)

    def _weights(self, modules: Sequence[nn.Module], optimizer: OptimizerSpec, members: int) -> MasterWeights:
        return ShardedWeights(modules, optimizer, members)

    # -- sampling -------------------------------------------------------------------------------------------------

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        """Those of all processes, in the first; elsewhere its own. The weights are gathered once, because processes draw
        answers of other lengths."""
        local = self.models[model]
        with whole(local.trunk, local.members[0].branch):
            mine = list(super().sample(model, prompts[self.rank :: self.size], params))
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(mine, found)
        yield from mine if found is None else (completion for part in found for completion in part)

    # -- scoring --------------------------------------------------------------------------------------------------

    def open(self, key: int, sequences: Sequences) -> None:
        """Hold sequences under a name that all processes know."""
        self.shares[key] = Shares(sequences, self.rank, self.size)

    def close(self, key: int) -> None:
        self.shares.pop(key).here.cache.clear()
        release_memory()

    def _trunk_outputs(self, trunk: Trunk, held: LocalHeld) -> list[Tensor]:
        share = own(held, Share)
        if trunk.key not in held.cache:  # all rows of all processes at once, or they would not meet
            super()._trunk_outputs(trunk, share.all_here)
        return super()._trunk_outputs(trunk, held)

    def _pieces(self, decoder: nn.Module | None, held: LocalHeld, token_budget: int) -> list[list[int]]:
        """As many in each process: the first is computed again where others have more."""
        mine = super()._pieces(decoder, held, token_budget)
        return mine + mine[:1] * (self._most(len(mine)) - len(mine))

    def _most(self, count: int) -> int:
        most = torch.tensor(count)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _together(self, held: LocalHeld, tables: Sequence[Tensor]) -> list[Tensor]:
        """Rows of all processes: tables [b ..] of this one's into [B ..] of all, as wide as the widest."""
        share = own(held, Share)
        mine = [table[: len(share.mine)] for table in tables]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, (share.mine, mine))
        result = []
        for place, table in enumerate(tables):
            widths = [
                max((part[place].shape[d] for rows, part in found if rows), default=0) for d in range(1, table.ndim)
            ]
            together = table.new_zeros(share.total, *widths)
            for rows, part in found:
                if rows:
                    together[(rows, *(slice(width) for width in part[place].shape[1:]))] = part[place]
            result.append(together)
        return result

    def logprobs(self, model: str, held: Held) -> TokenScores:
        scores = super().logprobs(model, held)
        assert scores.entropy is not None
        logprobs, is_response, entropy = self._together(
            own(held, Share), (scores.logprobs, scores.is_response, scores.entropy)
        )
        return TokenScores(logprobs, is_response, entropy)

    def values(self, model: str, held: Held) -> Float[Tensor, "B R"]:
        return self._together(own(held, Share), [super().values(model, held)])[0]

    def rewards(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        return self._together(own(held, Share), [super().rewards(model, held).T])[0].T

    def _features(self, model: LocalModel, held: LocalHeld) -> Float[Tensor, "M B H"]:
        return self._together(held, [super()._features(model, held).transpose(0, 1)])[0].transpose(0, 1)

    # -- training -------------------------------------------------------------------------------------------------

    def _set_aside(self) -> None:
        """Nothing: frozen layers lie in shares already."""

    def _update(self, counted: Sequence[tuple[Term, float]], lr: Mapping[str, float]) -> Metrics:
        """A loss is divided by the count of all targets, of which this process keeps its own."""
        mine = [
            (dataclasses.replace(term, targets=targets_of(term.targets, own(term.held, Share).mine)), count)
            for term, count in counted
        ]
        return super()._update(mine, lr)

    def _training_pieces(self, model: LocalModel, held: LocalHeld) -> list[list[int]]:
        pieces, count, left = super()._training_pieces(model, held), 0, len(own(held, Share).mine)
        while left > 0:
            left -= len(pieces[count])
            count += 1
        self.company = pieces[count:]
        return pieces[:count]

    def _accumulate(self, term: Term, count: float, trained: Iterable[MasterWeights], prefix: str) -> Metrics:
        metrics = super()._accumulate(term, count, trained, prefix)
        for rows in self.company:
            self._keep_company(term, rows, trained)
        return metrics

    def _keep_company(self, term: Term, rows: Sequence[int], trained: Iterable[MasterWeights]) -> None:
        """A pass that teaches nothing, while other processes compute pieces of theirs with the layers that all share."""
        model, held = self.models[term.model], own(term.held, Share).select(rows)
        which = model.members if term.loss.quantity == "rewards" else model.members[:1]
        which = which if term.member is None else [model.members[term.member]]
        torch.stack([self._forward(model, held, member)[0].sum() * 0.0 for member in which]).sum().backward()
        for weights in trained:
            weights.collect()

    def _gradients(self, counted: Sequence[tuple[Term, float]], trained: Iterable[MasterWeights]) -> Metrics:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, super()._gradients(counted, trained))
        for weights in trained:
            assert isinstance(weights, ShardedWeights)
            weights.reduce()
        names = dict.fromkeys(name for metrics in found for name in metrics)
        return {name: sum(metrics.get(name, 0.0) for metrics in found) for name in names}

    # -- state ----------------------------------------------------------------------------------------------------

    def weights(self, model: str) -> list[Mapping[str, Tensor]] | None:
        """Of what is trained of a policy, its branch and, where no trunk is frozen, its head, in the first process."""
        local = self.models[model]
        member = local.members[0]
        parts = [member.branch] if local.trunk.decoder is not None else [member.branch, member.head]
        found = [self._state_of(part) for part in parts]
        return found if self.writes else None

    def _state_of(self, module: nn.Module) -> Mapping[str, Tensor]:
        return state_of(module, self.compute.dtype, is_kept=self.writes)


def _stand_in(layers: nn.ModuleList, whole: nn.ModuleList, first: int) -> None:
    """Put layers that are sharded where the same ones stand whole, which nothing reads any more."""
    for place, layer in enumerate(layers, start=first):
        whole[place] = layer
