"""What a local engine knows of its models, and how it makes them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from whelp.engines.base import ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute, release_memory
from whelp.engines.mapped import MappedWeights
from whelp.engines.master import MasterWeights
from whelp.errors import ModelError
from whelp.models.adapters import add_adapters, adapters_of, beside
from whelp.models.heads import ScalarHead
from whelp.models.loading import Source, load_source
from whelp.models.trunk import Branch, LMHead, Trunk

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(slots=True)
class Member:
    """One branch with its head; a policy has one, an ensemble of reward models several."""

    branch: Branch
    head: LMHead | ScalarHead


@dataclass(slots=True)
class LocalModel:
    trunk: Trunk
    members: list[Member]
    source: Source
    spec: ModelSpec
    weights: MasterWeights | None
    mapped: MappedWeights | None = None

    def map(self) -> None:
        """Move weights that nobody shares and nobody trains out of memory of their own."""
        if self.mapped is not None or self.weights is not None or self.trunk.decoder is not None:
            return
        if self.spec.lora is not None:  # a model that learns may read these weights beside its adapters
            return
        modules = nn.ModuleList([part for member in self.members for part in (member.branch, member.head)])
        if any(weight.requires_grad or weight.device.type != "cpu" for weight in modules.parameters()):
            return
        self.mapped = MappedWeights(modules)
        release_memory()

    @property
    def layers(self) -> int:
        """Of a branch."""
        config: Any = self.decoder.config
        return config.num_hidden_layers

    @property
    def decoder(self) -> nn.Module:
        """That of a branch; all are built alike."""
        return self.members[0].branch.decoder


def frozen(member: Member) -> Member:
    member.branch.requires_grad_(False).eval()
    member.head.requires_grad_(False).eval()
    return member


class LocalModels:
    """The models of a local engine: loaded from folders, or copies of each other."""

    def __init__(self, compute: Compute):
        self.compute = compute
        self.models: dict[str, LocalModel] = {}
        self.trunks: dict[str, Trunk] = {}

    def add(self, name: str, spec: ModelSpec) -> None:
        if name in self.models:
            raise ModelError(f"the engine already has a model {name!r}; give the new one another name.")
        model = self._copy(spec) if spec.copy_of else self._load(spec)
        if spec.optimizer is not None:
            trained: list[nn.Module] = []
            for member in model.members:
                if not spec.shares_branch:
                    trained.append(member.branch)
                if spec.head == "scalar" or not (model.trunk.decoder or spec.lora):
                    trained.append(member.head)
            model.weights = self._weights(trained, spec.optimizer, spec.members)
        self.models[name] = model

    def _weights(self, modules: Sequence[nn.Module], optimizer: OptimizerSpec, members: int) -> MasterWeights:
        return MasterWeights(modules, optimizer, members)

    def remove(self, name: str) -> None:
        if name not in self.models:
            raise ModelError(f"the engine has no model {name!r} to remove; it has {', '.join(self.models) or 'none'}.")
        del self.models[name]
        release_memory()

    def has(self, model: str) -> bool:
        return model in self.models

    def config(self, model: str) -> PretrainedConfig:
        return self.models[model].source.config

    def notes(self, model: str) -> tuple[str, ...]:
        return self.models[model].source.notes

    def _load(self, spec: ModelSpec) -> LocalModel:
        assert spec.source is not None
        source = load_source(spec.source, spec.head, self.compute, spec.trainable_layers)
        trunk = self.trunks.setdefault(source.cut.trunk.key, source.cut.trunk)
        self._let_go(source, trunk)
        head = source.cut.head if spec.head == "lm" else source.scalar_head
        assert head is not None
        first = Member(source.cut.branch, head)
        lora = spec.lora if spec.optimizer else None

        def template(i: int) -> Member:
            if lora and not source.has_member(i):  # adapters stand beside the first one's weights
                return Member(first.branch, copy.deepcopy(first.head))
            return copy.deepcopy(first)

        members = [first, *(source.member(i, template(i)) for i in range(1, spec.members))]
        for i, member in enumerate(members):
            if lora:
                member.branch = add_adapters(self._beside(member.branch), lora, spec.seed + i)
            if isinstance(member.head, ScalarHead) and (spec.fresh_head or not source.has_scalar_head):
                member.head.reset(spec.seed + i, spec.head_std)
        return LocalModel(trunk, [frozen(m) for m in members], source, spec, None)

    def _let_go(self, source: Source, trunk: Trunk) -> None:
        """Of the source's own trunk, which is bit for bit the same."""
        for mine, theirs in zip(source.cut.trunk.parameters(), trunk.parameters(), strict=True):
            mine.data = theirs.data

    def _copy(self, spec: ModelSpec) -> LocalModel:
        origin = self.models.get(spec.copy_of or "")
        if origin is None:
            raise ModelError(
                f"copy_of: there is no model {spec.copy_of!r}; the engine has {', '.join(self.models) or 'none'}."
            )
        if spec.head == "lm":
            members = [self._copy_policy(origin, spec)]
        else:
            members = [self._copy_scalar(origin, spec, i) for i in range(spec.members)]
        if not spec.shares_branch:  # what the other model trains stays trainable
            members = [frozen(member) for member in members]
        return LocalModel(origin.trunk, members, origin.source, spec, None)

    def _copy_policy(self, origin: LocalModel, spec: ModelSpec) -> Member:
        member = origin.members[0]
        if isinstance(member.head, ScalarHead):
            raise ModelError(f"copy_of: {spec.copy_of!r} has a scalar head, but a language model is needed here.")
        if not (origin.trunk.decoder or spec.lora):  # the head may be tied to the embedding: both are copied as one
            return Member(*self._twins(member.branch, member.head))
        return Member(self._branch_of(origin, member.branch, spec, 0), member.head)

    def _branch_of(self, origin: LocalModel, branch: Branch, spec: ModelSpec, index: int) -> Branch:
        """With the weights that `branch` has now: of its own, or the very same with adapters beside them."""
        has_own = bool(adapters_of(branch))
        if has_own != bool(spec.lora) and (has_own or origin.weights is not None):
            raise ModelError(f"copy_of: adapters (lora) are for {spec.copy_of!r} and its copy, or for neither.")
        if spec.lora is None:
            return self._twins(branch)[0]
        twin = self._beside(branch)
        return add_adapters(twin, spec.lora, spec.seed + index) if spec.optimizer and not has_own else twin

    def _twins(self, *modules: nn.Module) -> Any:
        """The same weights once more; what the modules share their twins share too."""
        return copy.deepcopy(modules)

    def _beside(self, branch: Branch) -> Branch:
        """`branch` once more, with adapters of its own like those that it has, on weights that nobody trains."""
        return beside(branch)

    def _copy_scalar(self, origin: LocalModel, spec: ModelSpec, index: int) -> Member:
        """Copy of member `index`, or of the first where the origin has no such member, with a head drawn anew."""
        has_it = index < len(origin.members)
        member = origin.members[index if has_it else 0]
        if isinstance(member.head, ScalarHead) and has_it and not spec.fresh_head:
            twin = self._branch_of(origin, member.branch, spec, index)
            return Member(twin, self._twins(member.head)[0])
        head = ScalarHead(origin.trunk.hidden_size).to(self.compute.device).reset(spec.seed + index, spec.head_std)
        return Member(
            member.branch if spec.shares_branch else self._branch_of(origin, member.branch, spec, index), head
        )
