"""Low-rank adapters beside the linear maps of a branch (LoRA: Hu et al. 2021, arXiv:2106.09685, equation 3).

A branch with adapters reads weights that stay as they are, and owns two thin matrices A [r I] and B [O r] beside each linear
map W [O I] of its layers: it computes W x + (alpha / r) B A x. B begins at zero, so that it begins as the model it was made from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whelp.errors import ModelError
from whelp.models.trunk import Branch


@dataclass(frozen=True, slots=True)
class LoRA:
    """Rank of the adapters, and the factor alpha / rank by which their part is scaled."""

    rank: int
    alpha: float


def beside(branch: Branch) -> Branch:
    """A branch that reads the very weights of `branch`, with adapters of its own like those that it has now."""
    return copy.deepcopy(
        branch, {id(weight): weight for name, weight in branch.named_parameters() if not _is_adapter(name)}
    )


def add_adapters(branch: Branch, lora: LoRA, seed: int) -> Branch:
    """Put adapters at zero into `branch`; A is drawn with `seed`. Raises `ModelError` where peft is not installed, or finds no
    linear map."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError('lora_rank: adapters need peft; run pip install "whelp[lora]", or set lora_rank=0.') from error
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in branch.modules()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, branch.decoder)
        except ValueError as error:
            raise ModelError(f"lora_rank: this model takes no adapters ({error}); set lora_rank=0.") from error
    return branch.eval()


def adapters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """By name: A and B of every adapter in a module."""
    return {name: weight for name, weight in module.named_parameters() if _is_adapter(name)}


@torch.no_grad()
def merged(module: nn.Module, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> Iterator[tuple[str, Tensor]]:
    """The state of a module without adapters that computes the same, up to the rounding of its weights. `whole` gives all of a
    weight of which less is kept here. One weight is made at a time."""
    adapted: dict[str, Any] = {
        f"{name}.base_layer.weight": layer for name, layer in module.named_modules() if hasattr(layer, "base_layer")
    }
    for name, part in module.state_dict().items():
        if not _is_adapter(name):
            weight = whole(part)
            if layer := adapted.get(name):
                added = layer.get_delta_weight(layer.active_adapters[0])
                weight = (weight.float() + added.float()).to(weight.dtype)
            yield name.replace(".base_layer.", "."), weight


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
