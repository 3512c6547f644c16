"""How the model families of `transformers` are built, as far as cutting them in two needs to know."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whelp.errors import ModelError

Pretrained = Any
"""A model of `transformers`, or a part of one: typed as nn.Module, its attributes would all be "Tensor or Module"."""


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Attribute names: the decoder inside the model, its layers and its final norm inside the decoder."""

    decoder: str = "model"
    layers: str = "layers"
    norm: str = "norm"
    positions: str | None = None
    """An embedding of absolute positions that the decoder adds to its input, even to hidden states."""


ANATOMIES = {"gpt2": Anatomy("transformer", "h", "ln_f", "wpe")}
"""Families that differ from the Llama plan; all others are tried as that and checked at load."""


def anatomy_of(model: Pretrained) -> Anatomy:
    """The plan of this model; raises `ModelError` when its parts are not where the plan says."""
    plan = ANATOMIES.get(model.config.model_type, Anatomy())
    decoder = getattr(model, plan.decoder, None)
    if (
        decoder is None
        or not isinstance(getattr(decoder, plan.layers, None), nn.ModuleList)
        or not hasattr(decoder, plan.norm)
    ):
        raise ModelError(
            f"the model type {model.config.model_type!r} is not built as {plan.decoder}.{plan.layers} and "
            f"{plan.decoder}.{plan.norm}; add its plan to ANATOMIES in whelp/models/anatomy.py."
        )
    return plan


class NoPositions(nn.Module):
    """Stands in for a table of absolute positions where they were added already."""

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=position_ids.device)


def shell(module: Pretrained, **replaced: Any) -> Pretrained:
    """A copy of `module` that shares every part of it but those `replaced` (submodules or plain attributes)."""
    twin = copy.copy(module)
    for table in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[table] = dict(module.__dict__[table])
    for name, value in replaced.items():
        setattr(twin, name, value)
    return twin


def slice_layers(model: Pretrained, start: int, stop: int, *, norm: nn.Module | None) -> Pretrained:
    """The decoder of `model` with layers[start:stop]; `norm=None` keeps its final norm.

    Layers keep their `layer_idx`, so that trunk and branch can write into one cache. The list of layer types is
    indexed from 0 by the decoder, so it is sliced too.
    """
    plan = anatomy_of(model)
    decoder = getattr(model, plan.decoder)
    config = copy.copy(decoder.config)
    config.num_hidden_layers = stop - start
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types[start:stop])
    parts: dict[str, Any] = {
        plan.layers: nn.ModuleList(list(getattr(decoder, plan.layers))[start:stop]),
        "config": config,
    }
    if norm is not None:
        parts[plan.norm] = norm
    if plan.positions and start > 0:
        parts[plan.positions] = NoPositions()
    return shell(decoder, **parts)


def head_only(model: Pretrained) -> Pretrained:
    """The causal LM without any layer: final hidden states in as `inputs_embeds`, logits out.

    Logit scaling and soft caps live in the causal LM's own forward, so the bare output matrix is not enough.
    """
    plan = anatomy_of(model)
    empty = slice_layers(model, 0, 0, norm=nn.Identity())
    if plan.positions:
        setattr(empty, plan.positions, NoPositions())
    return shell(model, **{plan.decoder: empty})


def num_layers(model: Pretrained) -> int:
    plan = anatomy_of(model)
    return len(getattr(getattr(model, plan.decoder), plan.layers))
