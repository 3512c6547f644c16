"""fp32 master weights behind a module that computes in another number format, with their optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from whelp.engines.base import OptimizerSpec
from whelp.models.adapters import adapters_of


class MasterWeights:
    """The trainable weights of one model: of modules with adapters, the adapters.

    The module computes with its own parameters (bf16, say). Gradients of each piece are added to the fp32 masters, the
    step is taken there, and the module's parameters are overwritten before `step` returns: no stale copy can exist.
    Where the module is fp32 already, it is its own master. The modules are those of `members` models, as many of each, whose
    gradients are clipped apart, so that each learns as it would alone.

    Gradients and Adam's moments have their places from the first on. Made anew among a step's activations, which come and go,
    they would leave holes in the heap that nothing else fits (docs/decisions/0007).
    """

    def __init__(self, modules: Sequence[nn.Module], spec: OptimizerSpec, members: int = 1):
        named = [
            (i, name, p)
            for i, module in enumerate(modules)
            for name, p in (adapters_of(module) or dict(module.named_parameters())).items()
        ]
        unique: dict[int, tuple[int, str, nn.Parameter]] = {}
        for i, name, parameter in named:  # a tied weight is trained once, under its first name
            unique.setdefault(id(parameter), (i, name, parameter))
        self.names = [f"{i}.{name}" for i, name, _ in unique.values()]
        self.compute: list[nn.Parameter] = [parameter for _, _, parameter in unique.values()]
        for parameter in self.compute:
            parameter.requires_grad_(True)
        self.masters = [self._master(parameter) for parameter in self.compute]
        self.member_of = [i * members // len(modules) for i, _, _ in unique.values()]
        self.members = [
            [master for master, member in zip(self.masters, self.member_of, strict=True) if member == own]
            for own in range(members)
        ]
        self.spec = spec
        # On a processor one pass over the weights instead of ten; elsewhere its step counts would have to lie on the device.
        is_fused = all(master.device.type == "cpu" for master in self.masters)
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=0.0, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=is_fused
        )
        for master in self.masters:  # as the optimizer would begin at its first step
            moments = {key: torch.zeros_like(master) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[master] = {"step": torch.tensor(0.0)} | moments
        self.gradients = [torch.zeros_like(master) for master in self.masters]
        self.touched = [False] * len(self.masters)
        """Whether a weight has a gradient: one that no loss depends on is left as it is."""
        for place, parameter in enumerate(self.compute):
            parameter.register_post_accumulate_grad_hook(partial(_touch, self.touched, place))
        self.zero_grad()

    def _master(self, parameter: nn.Parameter) -> Tensor:
        return parameter if parameter.dtype == torch.float32 else parameter.detach().float().requires_grad_(True)

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return parameter.grad

    def collect(self) -> None:
        """Move the gradients of the piece just run from the computing weights to the masters."""
        for gradient, master, parameter in zip(self.gradients, self.masters, self.compute, strict=True):
            if master is not parameter and (found := self._gradient(parameter)) is not None:
                gradient.add_(found)
                parameter.grad = None

    def clip(self) -> float:
        """Scale the gradients so that each member's global norm is at most `max_grad_norm`; returns the norm of all before."""
        for gradient, master, is_touched in zip(self.gradients, self.masters, self.touched, strict=True):
            master.grad = gradient if is_touched else None
        norms = [torch.nn.utils.clip_grad_norm_(weights, self.spec.max_grad_norm) for weights in self.members]
        return math.hypot(*map(float, norms))

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.zero_grad()
        self.publish()

    def zero_grad(self) -> None:
        """To be called before the first piece of a step."""
        for place, (gradient, parameter) in enumerate(zip(self.gradients, self.compute, strict=True)):
            if self.touched[place]:
                gradient.zero_()
                self.touched[place] = False
            parameter.grad = None
            self.masters[place].grad = gradient

    @torch.no_grad()
    def publish(self) -> None:
        """Overwrite the computing weights with the masters."""
        for master, parameter in zip(self.masters, self.compute, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Masters, Adam moments and step counts, by name."""
        tensors = {}
        for place, (name, master) in enumerate(zip(self.names, self.masters, strict=True)):
            tensors[f"weight.{name}"] = self._whole(place, master.detach())
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = self._whole(place, torch.as_tensor(value))
        return tensors

    def _whole(self, place: int, tensor: Tensor) -> Tensor:
        """Of a weight, or of what the optimizer knows of it: all that `state` writes."""
        return tensor

    def _part(self, place: int, tensor: Tensor) -> Tensor:
        """The inverse: what is kept here of what `state` wrote."""
        return tensor

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`; raises RuntimeError, before anything is changed, where weights are missing or others."""
        expected = {f"weight.{name}": weight.shape for name, weight in zip(self.names, self.compute, strict=True)}
        found = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("weight.")}
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            raise RuntimeError(f"{differing[0]} is {found.get(differing[0])}, expected {expected.get(differing[0])}")
        for place, (name, master) in enumerate(zip(self.names, self.masters, strict=True)):
            master.copy_(self._part(place, tensors[f"weight.{name}"]))
            for key, value in self.optimizer.state[master].items():
                stored = tensors.get(f"{key}.{name}")
                value.zero_() if stored is None else value.copy_(self._part(place, stored))
        self.publish()


def _touch(touched: list[bool], place: int, _: Tensor) -> None:
    touched[place] = True
