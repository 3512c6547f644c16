"""A Llama-architecture GGUF file as an ordinary Hugging Face folder.

`transformers` reads the configuration and the tokenizer; the weights are unpacked here with the `gguf` library, because
`transformers` changed from 5.x to 5.x whether a GGUF model may be saved again (see docs/decisions/0003).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from whelp.errors import ModelError

if TYPE_CHECKING:
    import torch

LAYER_NAMES = {
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
OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def convert(file: Path, folder: Path, chat_template: str) -> None:
    """Write `folder` (safetensors in bf16, config, tokenizer with `chat_template`) from the GGUF `file`.

    Raises `ModelError` for an architecture other than Llama.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from whelp.text.chat import pad_id

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    if not isinstance(config, LlamaConfig):
        raise ModelError(f"{file.name} is a {config.model_type} model; only GGUF files of Llama models are converted.")
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = chat_template
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    config.dtype = torch.bfloat16

    model = LlamaForCausalLM(config)
    model.bfloat16()
    state = read_weights(file, config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelError(f"{file.name} does not fit its own configuration: missing {missing}, unexpected {unexpected}.")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_weights(file: Path, num_heads: int, num_kv_heads: int) -> dict[str, torch.Tensor]:
    """All tensors of a Llama GGUF, dequantised to bf16, under their `transformers` names."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    state: dict[str, torch.Tensor] = {}
    for tensor in GGUFReader(file).tensors:
        name = _transformers_name(tensor.name)
        if name is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if "q_proj" in name:
            weight = _unpermute(weight, num_heads)
        elif "k_proj" in name:
            weight = _unpermute(weight, num_kv_heads)
        state[name] = weight.to(torch.bfloat16)
    return state


def _transformers_name(name: str) -> str | None:
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    if not name.startswith("blk."):
        return None  # rope frequencies are computed by the model itself
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.{suffix}"


def _unpermute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF interleaves the two halves of a rotary head; `transformers` keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
