"""What a local engine knows of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from whelp.engines.base import ModelSpec
from whelp.engines.devices import release_memory
from whelp.engines.mapped import MappedWeights
from whelp.engines.master import MasterWeights
from whelp.models.heads import ScalarHead
from whelp.models.loading import Source
from whelp.models.trunk import Branch, LMHead, Trunk


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
