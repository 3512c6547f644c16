"""Layers of which each of several processes keeps a share, and their master weights (FSDP2: Zhao et al. 2023, arXiv:2304.11277).

The layers of a decoder are sharded, one unit each: gathered when they are computed, let go behind it. What stands beside them
(embedding, norms, heads) is whole in every process, and so are its gradients once `reduce` has added them up.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from whelp.engines.base import OptimizerSpec
from whelp.engines.master import MasterWeights
from whelp.models.adapters import adapters_of, merged


def shard(decoder: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, is_trained: bool) -> None:
    """Shard `layers`, which stand in `decoder`, but for adapters. The shares of trained ones are the fp32 masters of what is
    gathered."""
    for layer in layers:
        if isinstance(layer, FSDPModule):
            continue
        policy = MixedPrecisionPolicy()
        if is_trained:
            dtype = next(layer.parameters()).dtype
            policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
            for parameter in layer.parameters():
                parameter.data = parameter.data.float()
        fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=set(adapters_of(layer).values()))
        _add_up_gradients(layer)
    if layers and not isinstance(decoder, FSDPModule):
        for name, value in list(vars(decoder).items()):  # those of a shell are the model's that it was cut from
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                setattr(decoder, name, copy.copy(value))
        beside = {p for p in decoder.parameters() if not isinstance(p, DTensor)}
        fully_shard(decoder, mesh=mesh, ignored_params=beside)
        _add_up_gradients(decoder)


def _add_up_gradients(module: nn.Module) -> None:
    """A loss is divided by its whole count already, so that gradients are sums over processes and not means."""
    assert isinstance(module, FSDPModule)
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)


def shards_in(*modules: nn.Module) -> list[FSDPModule]:
    found = {id(part): part for module in modules for part in module.modules() if isinstance(part, FSDPModule)}
    return list(found.values())


@contextmanager
def whole(*modules: nn.Module) -> Iterator[None]:
    """All weights of the modules are gathered in every process, so that each computes without the others."""
    parts = shards_in(*modules)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def gathered(tensor: Tensor) -> Tensor:
    """A whole tensor in every process; all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def template_of(*modules: nn.Module) -> tuple[nn.Module, ...]:
    """The modules without their weights, from which `twins_of` makes others when they are sharded."""
    parameters = {id(p): p for module in modules for p in module.parameters()}
    bare = {key: nn.Parameter(p.detach().to("meta"), requires_grad=False) for key, p in parameters.items()}
    return copy.deepcopy(modules, dict(bare))


def twins_of(templates: Sequence[nn.Module], modules: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Modules built like `templates` with the weights that `modules` have now."""
    bare, now = (list(nn.ModuleList(parts).parameters()) for parts in (templates, modules))
    filled = {
        id(empty): nn.Parameter(gathered(p.detach()).to(empty.dtype, copy=True), requires_grad=False)
        for empty, p in zip(bare, now, strict=True)
    }
    return copy.deepcopy(tuple(templates), dict(filled))


class ShardedWeights(MasterWeights):
    """Masters of a model whose layers are sharded: each process steps its share of them, and all of what is not sharded."""

    def __init__(self, modules: Sequence[nn.Module], spec: OptimizerSpec, members: int = 1):
        super().__init__(modules, spec, members)
        self.is_shared = [isinstance(parameter, DTensor) for parameter in self.compute]
        """True: each process has another part of the weight."""

    def _master(self, parameter: nn.Parameter) -> Tensor:
        if isinstance(parameter, DTensor):  # the very memory that is gathered from
            return parameter.to_local().detach().requires_grad_(True)
        return super()._master(parameter)

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        gradient = parameter.grad
        return gradient.to_local() if isinstance(gradient, DTensor) else gradient

    def reduce(self) -> None:
        """Add up what every process found for the weights that all have."""
        touched = torch.tensor(self.touched, dtype=torch.int32)
        dist.all_reduce(touched, dist.ReduceOp.MAX)
        self.touched[:] = [bool(flag) for flag in touched]
        for gradient, is_shared, is_touched in zip(self.gradients, self.is_shared, self.touched, strict=True):
            if is_touched and not is_shared:
                dist.all_reduce(gradient)

    @torch.no_grad()
    def publish(self) -> None:
        for master, parameter, is_shared in zip(self.masters, self.compute, self.is_shared, strict=True):
            if not is_shared and master is not parameter:
                parameter.copy_(master)

    def clip(self) -> float:
        squares = torch.zeros(len(self.members), 2, dtype=torch.float64)
        parts: list[list[Tensor]] = [[] for _ in self.members]
        for place, (gradient, master) in enumerate(zip(self.gradients, self.masters, strict=True)):
            master.grad = gradient if self.touched[place] else None
            if self.touched[place]:
                member = self.member_of[place]
                squares[member, int(self.is_shared[place])] += float(gradient.double().square().sum())
                parts[member].append(gradient)
        shared = squares[:, 1].contiguous()
        dist.all_reduce(shared)
        norms = (squares[:, 0] + shared).sqrt()
        for norm, gradients in zip(norms.tolist(), parts, strict=True):
            scale = min(1.0, self.spec.max_grad_norm / (norm + 1e-6))
            for gradient in gradients if scale < 1.0 else ():
                gradient.mul_(scale)
        return math.hypot(*norms.tolist())

    def _whole(self, place: int, tensor: Tensor) -> Tensor:
        parameter = self.compute[place]
        if not isinstance(parameter, DTensor) or tensor.ndim == 0:
            return tensor
        share = DTensor.from_local(
            tensor, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return share.full_tensor()

    def _part(self, place: int, tensor: Tensor) -> Tensor:
        parameter = self.compute[place]
        if not isinstance(parameter, DTensor) or tensor.ndim == 0:
            return tensor
        share = distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return share.to_local()


def state_of(module: nn.Module, dtype: torch.dtype, is_kept: bool) -> dict[str, Tensor]:
    """The weights of a module, gathered one by one, in the number format that it computes in; without memory where they are
    not kept."""
    found = {}
    for name, tensor in merged(module, gathered):
        found[name] = tensor.detach().to(
            "cpu" if is_kept else "meta", dtype if tensor.is_floating_point() else tensor.dtype
        )
    return found
