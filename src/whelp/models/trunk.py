"""A causal LM cut in two: a frozen trunk below, a trainable branch above.

One trunk serves policy, reference, value and reward; a branch is a few layers with a final norm, and a head.
At k = 0 the trunk is empty, its output is the tokens themselves, and the branch is the whole model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whelp.models.anatomy import Pretrained, head_only, num_layers, slice_layers


class Trunk(nn.Module):
    """Embedding and layers[:k], never trained."""

    def __init__(self, decoder: Pretrained | None, key: str, hidden_size: int):
        super().__init__()
        self.decoder: Pretrained | None = decoder
        self.key = key
        self.hidden_size = hidden_size

    @torch.no_grad()
    def forward(self, tokens: Int[Tensor, "B T"], **kwargs) -> Tensor:
        """Hidden states [B T H]; the tokens [B T] themselves when the trunk is empty."""
        if self.decoder is None:
            return tokens
        return self.decoder(input_ids=tokens, **kwargs).last_hidden_state


class Branch(nn.Module):
    """layers[k:] and the final norm (and the embedding, when k = 0)."""

    def __init__(self, decoder: Pretrained):
        super().__init__()
        self.decoder: Pretrained = decoder

    def forward(self, trunk_output: Tensor, **kwargs) -> Float[Tensor, "B T H"]:
        """Final hidden states of what the trunk gave: hidden states, or tokens when it is empty."""
        name = "inputs_embeds" if trunk_output.is_floating_point() else "input_ids"
        return self.decoder(**{name: trunk_output}, **kwargs).last_hidden_state


class LMHead(nn.Module):
    """Final hidden states to logits, through the causal LM's own forward."""

    def __init__(self, model: Pretrained):
        super().__init__()
        self.model: Pretrained = model

    def forward(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        return self.model(inputs_embeds=hidden.unsqueeze(1), use_cache=False).logits.squeeze(1)


@dataclass(frozen=True, slots=True)
class Cut:
    """The parts of one model: `branch` and `head` share their tensors with the model they were cut from."""

    trunk: Trunk
    branch: Branch
    head: LMHead | None


def cut(model: Pretrained, trainable_layers: int | str, *, with_head: bool) -> Cut:
    """Cut below the last `trainable_layers` layers ("all": no trunk).

    Raises `ModelError` when the model's family is not built as expected.
    """
    layers = num_layers(model)
    k = 0 if trainable_layers == "all" else max(0, layers - int(trainable_layers))
    hidden_size = model.config.get_text_config().hidden_size
    trunk = Trunk(None, f"tokens-{hidden_size}", hidden_size)
    if k > 0:
        below = slice_layers(model, 0, k, norm=nn.Identity())
        trunk = Trunk(below, f"{weight_hash(below)}-{k}", hidden_size)
    branch = Branch(slice_layers(model, k, layers, norm=None))
    if k > 0:
        forget_embedding(branch.decoder)
    return Cut(
        trunk.requires_grad_(False).eval(), branch.eval(), LMHead(head_only(model)).eval() if with_head else None
    )


def forget_embedding(decoder: nn.Module) -> None:
    """A branch that is fed hidden states needs no embedding; without it the frozen table is neither copied nor trained."""
    for name, module in list(decoder._modules.items()):
        if isinstance(module, nn.Embedding):
            decoder._modules[name] = nn.Identity()


def weight_hash(module: nn.Module) -> str:
    """sha256 over names, shapes and bits of all weights: equal trunks are one trunk."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
