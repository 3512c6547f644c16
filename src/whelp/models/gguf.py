"""A GGUF file of a Llama or a Gemma 3 as an ordinary Hugging Face folder.

`transformers` reads the configuration and the tokenizer; the weights are unpacked here with the `gguf` library, because
`transformers` changed from 5.x to 5.x whether a GGUF model may be saved again (see docs/decisions/0003).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whelp.errors import ModelError

if TYPE_CHECKING:
    import torch

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LLAMA_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True, slots=True)
class Family:
    """How the GGUF files of a family differ from the folders of `transformers`."""

    names: Mapping[str, str]
    """Of the parts of a layer."""
    is_interleaved: bool = False
    """Whether the two halves of a rotary head are."""
    norm_offset: float = 0.0
    """What was added to the weights of norms."""


FAMILIES = {
    "llama": Family(LLAMA_NAMES, is_interleaved=True),
    "gemma3_text": Family(
        LLAMA_NAMES
        | {
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        norm_offset=1.0,
    ),
}
"""By `model_type`."""


def convert(file: Path, folder: Path, chat_template: str) -> None:
    """Write `folder` (safetensors in bf16, config, tokenizer with `chat_template`) from the GGUF `file`.

    Raises `ModelError` for an architecture that is not among `FAMILIES`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from whelp.text.chat import pad_id

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if config.model_type not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise ModelError(
            f"{file.name} is a {config.model_type} model; only GGUF files of {known} models are converted."
        )
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = chat_template
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    config.dtype = torch.bfloat16

    model = AutoModelForCausalLM.from_config(config)
    model.bfloat16()
    heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    state = read_weights(file, FAMILIES[config.model_type], *heads)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelError(f"{file.name} does not fit its own configuration: missing {missing}, unexpected {unexpected}.")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_weights(file: Path, family: Family, num_heads: int, num_kv_heads: int) -> dict[str, torch.Tensor]:
    """All tensors of a GGUF file, dequantised to bf16, under their `transformers` names."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    state: dict[str, torch.Tensor] = {}
    for tensor in GGUFReader(file).tensors:
        name = _transformers_name(tensor.name, family)
        if name is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if family.is_interleaved and "q_proj" in name:
            weight = _unpermute(weight, num_heads)
        elif family.is_interleaved and "k_proj" in name:
            weight = _unpermute(weight, num_kv_heads)
        elif "norm" in name:
            weight = weight - family.norm_offset
        state[name] = weight.to(torch.bfloat16)
    return state


def _transformers_name(name: str, family: Family) -> str | None:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if not name.startswith("blk."):
        return None  # rope frequencies are computed by the model itself
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{family.names[kind]}.{suffix}"


def _unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF interleaves the two halves of a rotary head; `transformers` keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
