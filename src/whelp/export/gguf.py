"""A Llama model as one GGUF file, which llama.cpp, Ollama and what is built on them read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType, TokenType
from jaxtyping import Float
from torch import Tensor

from whelp.engines.devices import Compute
from whelp.errors import ConfigError, ModelError
from whelp.export.lineage import lineage
from whelp.export.ollama import modelfile
from whelp.models.gguf import LLAMA_NAMES, OUTER_NAMES
from whelp.models.loading import load_tokenizer, load_whole
from whelp.runs.files import new_folder
from whelp.text.chat import end_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

KINDS = {
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "f32": (Kind.F32, LlamaFileType.ALL_F32),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
OUTER = {ours: theirs for theirs, ours in OUTER_NAMES.items()}
INNER = {ours: theirs for theirs, ours in LLAMA_NAMES.items()}
BLOCK = 32
"""Numbers of a row that share a scale in Q8_0."""
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, tuple[Sequence[Mapping[str, Any]], bool]] = {
    "gpt-2": ((BYTES,), False),
    "smollm": (({"type": "Digits", "individual_digits": True}, BYTES), False),
    "llama-bpe": (
        (
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            BYTES | {"use_regex": False},
        ),
        True,
    ),
}
"""llama.cpp's name of how text is cut before merging: the steps of `tokenizers`, and whether whole words go before merges."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE tokenizer as GGUF stores it; one token for each row of the embedding."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    pre: str


def export_gguf(model: Path, out: Path, dtype: str = "f16") -> None:
    """Write `out` with a GGUF file, its matrices as `dtype` and its vectors in float32, and a Modelfile.

    Raises `ConfigError` for another `dtype`, `ModelError` where there is no Llama model with a byte-level BPE tokenizer that
    llama.cpp knows, or a weight that float16 cannot hold, and `RunError` where `out` is not empty or cannot be written.
    """
    if dtype not in KINDS:
        raise ConfigError(f"dtype is {dtype}, expected one of {', '.join(KINDS)}.")
    config, tokenizer, found = _config(model), load_tokenizer(model), lineage(model)
    run, stage = model.resolve().parts[-2:]
    name = re.sub(r"[^\w.-]+", "-", f"{run}-{stage}" if found.stages else found.base.name)
    with new_folder(out) as folder:
        file = folder / f"{name}-{dtype}.gguf"
        write(file, model, config, tokenizer, dtype, name, found.base.licence)
        (folder / "Modelfile").write_text(modelfile(file, tokenizer, found.system_prompt), encoding="utf-8")


def write(
    file: Path,
    model: Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    name: str,
    licence: str | None,
) -> None:
    """The GGUF file of the model in the folder `model`. Raises `ModelError` as `export_gguf` does."""
    words = vocabulary(tokenizer, config.vocab_size)
    stored = getattr(config, "dtype", None) or torch.float32
    whole, _ = load_whole(model, Compute(torch.device("cpu"), stored, 1, "export"))
    kind, file_type = KINDS[dtype]
    writer = gguf.GGUFWriter(file, "llama")
    try:
        _describe(writer, config, name, licence)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, tokenizer, words, config.bos_token_id)
        for key, weight in _permuted(whole.state_dict(), config).items():
            data, stored_as = encode(key, weight, kind)
            writer.add_tensor(gguf_name(key), data, raw_dtype=stored_as)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _config(model: Path) -> PretrainedConfig:
    """Raises `ModelError` where llama.cpp's Llama would compute something else."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture != "LlamaForCausalLM":
        raise ModelError(
            f"{model} is a {architecture}; only LlamaForCausalLM is written as GGUF. Use `whelp export hf`, and llama.cpp's own "
            "convert_hf_to_gguf.py on what it writes."
        )
    rope = config.rope_parameters["rope_type"]
    if rope != "default" or config.hidden_act != "silu":
        raise ModelError(
            f"{model} has the activation {config.hidden_act} and rotary positions of the type {rope}; only silu and default are "
            "written as GGUF."
        )
    return config


def _describe(writer: gguf.GGUFWriter, config: Any, name: str, licence: str | None) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if licence is not None:
        writer.add_license(licence)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, words: Vocabulary, bos: int | None
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    ends = end_ids(tokenizer) or (None,)
    named = {
        writer.add_bos_token_id: bos if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        writer.add_eos_token_id: ends[0],
        writer.add_eot_token_id: ends[-1],
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, id in named.items():
        if id is not None:
            add(id)
    # A conversation is what the template makes of it, in training too: nothing is put before or behind it.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(str(tokenizer.chat_template))


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """For an embedding of `rows` rows. Raises `ModelError` for a tokenizer that is no byte-level BPE, cuts text in a way that
    llama.cpp has no name for, or has more tokens than that."""
    fast: Any = tokenizer.backend_tokenizer
    backend = json.loads(fast.to_str())
    model, known = backend["model"], {id: token for token, id in tokenizer.get_vocab().items()}
    if len(known) > rows:
        raise ModelError(f"{tokenizer.name_or_path} has {len(known)} tokens, its model's embedding {rows} rows.")
    added = {token["id"]: token["special"] for token in backend["added_tokens"]}

    def kind(id: int) -> TokenType:
        if id in added:
            return TokenType.CONTROL if added[id] else TokenType.USER_DEFINED
        return TokenType.NORMAL if id in known else TokenType.UNUSED

    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
    tokens = [known.get(id, f"[PAD{id}]") for id in range(rows)]
    return Vocabulary(
        tuple(tokens), tuple(map(kind, range(rows))), tuple(merges), _pre_tokenizer(backend, tokenizer.name_or_path)
    )


def _pre_tokenizer(backend: Mapping[str, Any], name: str) -> str:
    model = backend["model"]
    cut: dict[str, Any] = backend["pre_tokenizer"] or {"type": "nothing"}
    steps = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if model["type"] == "BPE" and not model["byte_fallback"] and backend["normalizer"] is None:
        for known, (expected, ignores_merges) in PRE_TOKENIZERS.items():
            if steps == list(expected) and model["ignore_merges"] == ignores_merges:
                return known
    parts = ", ".join(step["type"] for step in steps)
    raise ModelError(
        f"the tokenizer of {name} ({model['type']}, text cut by {parts}) is none that is written as GGUF: those are byte-level "
        f"BPE that cut text as {', '.join(PRE_TOKENIZERS)} do. Under another name llama.cpp would see other tokens than training."
    )


def gguf_name(name: str) -> str:
    """What GGUF calls a weight of `LlamaForCausalLM`."""
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    stem, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{INNER[stem]}.{suffix}"


def _permuted(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """As GGUF orders the rows; without the output matrix where it is the embedding."""
    heads = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    found = {}
    for name, weight in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        count = next((count for part, count in heads.items() if part in name), None)
        found[name] = weight if count is None else permute(weight, count)
    return found


def permute(weight: Float[Tensor, "N *D"], heads: int) -> Float[Tensor, "N *D"]:
    """GGUF's rotary heads have their two halves row by row in turn; those of `transformers` one behind the other."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def encode(name: str, weight: Float[Tensor, "*S"], kind: Kind) -> tuple[np.ndarray, Kind]:
    """A weight as numbers of `kind`: but vectors stay float32, and rows that do not fill blocks are float16 instead of Q8_0.

    Raises `ModelError` where float16 cannot hold a number.
    """
    data = weight.detach().float().contiguous().numpy()
    if data.ndim == 1:
        kind = Kind.F32
    elif kind is Kind.Q8_0 and data.shape[-1] % BLOCK:
        kind = Kind.F16
    if kind is not Kind.F32 and np.abs(data).max() > np.finfo(np.float16).max:
        raise ModelError(
            f"{name} holds numbers up to {np.abs(data).max():.3g}, which float16 cannot hold: give --dtype f32."
        )
    return gguf.quants.quantize(data, kind), kind
