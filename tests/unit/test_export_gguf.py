"""A Llama as GGUF: the same weights, tokens and conversations for whoever reads the file; refused where they would not be."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import jinja2
import numpy as np
import pytest
import torch
from gguf_helpers import gguf_name, interleave
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from whelp.cli import app
from whelp.errors import ConfigError, ModelError
from whelp.export.gguf import LLAMA3, export_gguf, vocabulary
from whelp.export.ollama import modelfile
from whelp.models.sources import ALIASES
from whelp.runs.manifest import fingerprint_parts, open_run
from whelp.text.chat import PLAIN
from whelp.types import Message, Prompt

CONVERSATIONS = [
    (Message("user", "Hello there, how are you?"),),
    (Message("system", "Be brief."), Message("user", "two and two\n\nis 12  3?")),
    (
        Message("user", "The end."),
        Message("assistant", "I am fine — 好."),
        Message("user", "today <|im_end|> ' \" {{ x }}"),
    ),
]


def export(source: Path, out: Path, dtype: str = "f32") -> Path:
    export_gguf(source, out, dtype)
    (file,) = out.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def exported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(llama, tmp_path_factory.mktemp("gguf") / "out")


def read_back(file: Path) -> torch.nn.Module:
    """As `transformers` reads a GGUF file. It asks for accelerate first, of which it uses nothing on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: True)
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def metadata(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(290, (3, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens).logits


# -- weights --------------------------------------------------------------------------------------------------------


def test_every_weight_is_there_bit_for_bit(exported, llama):
    config, original = json.loads((llama / "config.json").read_text()), load_file(llama / "model.safetensors")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    assert heads == {"q_proj": 4, "k_proj": 2}
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(exported).tensors}
    assert set(found) == {gguf_name(name) for name in original}
    for name, tensor in original.items():
        expected = tensor.numpy()
        if (kind := name.split(".")[-2]) in heads:
            expected = interleave(expected, heads[kind])
        stored = found[gguf_name(name)]
        assert stored.tensor_type.name == "F32"
        assert np.array_equal(stored.data, expected), name


@pytest.mark.parametrize(("dtype", "bound"), [("f32", 1e-3), ("f16", 0.02), ("q8_0", 0.3)])
def test_what_transformers_computes_from_the_file(dtype, bound, llama, whole_model, tmp_path):
    model, original = read_back(export(llama, tmp_path / "out", dtype)), logits(whole_model(llama))
    found = logits(model)
    assert original.abs().max() > 3
    torch.testing.assert_close(found, original, rtol=0, atol=bound)
    agree = (found.argmax(-1) == original.argmax(-1)).float().mean()
    assert agree == 1 if dtype == "f32" else agree > 0.9


def test_a_tied_model_has_no_output_matrix(tiny_model_folder, whole_model, tmp_path):
    source = tiny_model_folder("llama", num_hidden_layers=2, tie_word_embeddings=True)
    file = export(source, tmp_path / "out")
    assert "output.weight" not in {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    model = read_back(file)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(logits(model), logits(whole_model(source)), rtol=0, atol=1e-3)


def test_heads_of_another_size_and_biases(tiny_model_folder, whole_model, tmp_path):
    source = tiny_model_folder("llama", num_hidden_layers=2, head_dim=16, attention_bias=True)
    file = export(source, tmp_path / "out")
    names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert {"blk.0.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_output.bias"} <= names
    original = load_file(source / "model.safetensors")["model.layers.0.self_attn.q_proj.bias"].numpy()
    (stored,) = (tensor.data for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.0.attn_q.bias")
    assert np.array_equal(stored, interleave(original, 4))
    assert metadata(file)["llama.rope.dimension_count"] == metadata(file)["llama.attention.key_length"] == 16


def test_which_numbers_are_stored_how(llama, tmp_path):
    """Vectors stay as they are; rows of 48 numbers do not fill blocks of 32."""
    for dtype, matrix, narrow in (("f16", "F16", "F16"), ("q8_0", "Q8_0", "F16")):
        file = export(llama, tmp_path / dtype, dtype)
        kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
        assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
        assert {kind for name, kind in kinds.items() if "ffn_down" in name} == {narrow}
        others = {kind for name, kind in kinds.items() if "norm" not in name and "ffn_down" not in name}
        assert others == {matrix}
        assert metadata(file)["general.file_type"] == {"f16": 1, "q8_0": 7}[dtype]


def test_q8_0_is_off_by_half_a_step_and_its_scale_s_rounding_at_most(llama, tmp_path):
    file, original = export(llama, tmp_path / "out", "q8_0"), load_file(llama / "model.safetensors")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    weight = original["lm_head.weight"].numpy()
    stored = gguf.quants.dequantize(found["output.weight"].data, found["output.weight"].tensor_type)
    step = np.abs(weight.reshape(len(weight), -1, 32)).max(-1, keepdims=True) / 127
    error = np.abs(stored - weight).reshape(len(weight), -1, 32)
    assert (error <= (0.5 + 127 / 2**11) * step).all(), "the scale is a float16"
    assert error.max() > 0


# -- what is said of the model --------------------------------------------------------------------------------------


def test_what_the_file_says_of_the_model(exported, llama, tiny_tokenizer):
    said, config = metadata(exported), json.loads((llama / "config.json").read_text())
    ids = {name: tiny_tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>", "<pad>")}
    assert {key: said[key] for key in said if key.startswith("llama.")} == {
        "llama.vocab_size": len(tiny_tokenizer),
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(config["rms_norm_eps"]),
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
    }
    assert (said["general.architecture"], said["general.name"]) == ("llama", llama.name)
    assert "general.license" not in said
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.ggml.bos_token_id"] == ids["<|endoftext|>"]
    assert said["tokenizer.ggml.eos_token_id"] == said["tokenizer.ggml.eot_token_id"] == ids["<|im_end|>"]
    assert said["tokenizer.ggml.padding_token_id"] == ids["<pad>"]
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (False, False)
    types = {token: said["tokenizer.ggml.token_type"][id] for token, id in tiny_tokenizer.get_vocab().items()}
    control = {token for token, kind in types.items() if kind == gguf.TokenType.CONTROL}
    assert control == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"}
    assert set(types.values()) == {gguf.TokenType.CONTROL, gguf.TokenType.NORMAL}


def test_a_stage_is_called_by_its_run_and_has_the_licence_of_its_base(llama, tmp_path, monkeypatch):
    run = open_run(tmp_path / "my run", {}, ["whelp", "sft"])
    run.start_stage("sft", parts := fingerprint_parts("sft", {"system_prompt": "Be brief."}, {"model": "ab"}))
    run.finish_stage("sft", _fingerprint(parts), {}, {})
    run.record_inputs("sft", {"model": {"path": f"/x/models/{next(iter(ALIASES))}-0.1.2", "sha256": "ab"}})
    for file in llama.iterdir():
        shutil.copy(file, run.path / "sft")
    file = export(run.path / "sft", tmp_path / "out", "q8_0")
    assert file.name == "my-run-sft-q8_0.gguf"
    said = metadata(file)
    assert (said["general.name"], said["general.license"]) == ("my-run-sft", "apache-2.0")
    assert 'SYSTEM """Be brief."""\n' in (tmp_path / "out" / "Modelfile").read_text()


def _fingerprint(parts: dict[str, Any]) -> str:
    from whelp.runs.files import sha256_json

    return sha256_json(parts)


# -- tokens and conversations ---------------------------------------------------------------------------------------


def test_the_vocabulary_is_the_tokenizer_s(exported, tiny_tokenizer):
    said, backend = metadata(exported), json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    assert {token: id for id, token in enumerate(said["tokenizer.ggml.tokens"])} == tiny_tokenizer.get_vocab()
    assert [merge.split(" ") for merge in said["tokenizer.ggml.merges"]] == backend["model"]["merges"]
    assert len(backend["model"]["merges"]) > 10


def test_conversations_are_token_for_token_those_of_training(exported, chat):
    """The template out of the file, by Jinja itself, in the tokens that `transformers` reads out of the file."""
    tokenizer = AutoTokenizer.from_pretrained(exported.parent, gguf_file=exported.name)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(metadata(exported)["tokenizer.chat_template"])
    for messages in CONVERSATIONS:
        turns = [message.as_dict() for message in messages]
        asked = template.render(messages=turns, add_generation_prompt=True)
        assert tuple(tokenizer.encode(asked, add_special_tokens=False)) == chat.prompt(Prompt("p", messages))
        assert len(chat.prompt(Prompt("p", messages))) > 10
        answered = template.render(
            messages=[*turns, {"role": "assistant", "content": "Fine."}], add_generation_prompt=False
        )
        expected = chat.answer(Prompt("p", messages), "Fine.").tokens
        assert tuple(tokenizer.encode(answered, add_special_tokens=False)) == expected


def test_rows_of_the_embedding_that_no_token_has(tiny_model_folder, tiny_tokenizer, whole_model, tmp_path):
    source = tiny_model_folder("llama", num_hidden_layers=2, vocab_size=len(tiny_tokenizer) + 5)
    file = export(source, tmp_path / "out")
    tokens, types = (metadata(file)[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(tokens) == len(set(tokens)) == len(types) == len(tiny_tokenizer) + 5
    assert set(types[-5:]) == {gguf.TokenType.UNUSED}
    assert gguf.TokenType.UNUSED not in types[:-5]
    torch.testing.assert_close(logits(read_back(file)), logits(whole_model(source)), rtol=0, atol=1e-3)


def test_a_token_that_was_added_and_is_not_special(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>"])
    found = vocabulary(tokenizer, len(tokenizer))
    assert (found.tokens[-1], found.types[-1]) == ("<think>", gguf.TokenType.USER_DEFINED)


GPT2_OF_LLAMA_CPP = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
OF_LLAMA_CPP = {
    "gpt-2": [GPT2_OF_LLAMA_CPP],
    "smollm": [r"\p{N}", GPT2_OF_LLAMA_CPP],
    "llama-bpe": [
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
}
"""How llama.cpp cuts text under each name, one expression behind the other: each match is a piece, and what lies between too."""
TEXTS = ["It's 1234  5 o'clock\n\n 7. you'LL   see ½² of «it»!?\r\n\tend  ", "a\n1. b\n\n2. c", "  12", "日本語 42年"]


def cut_by_llama_cpp(text: str, name: str) -> list[str]:
    regex = pytest.importorskip("regex")
    pieces = [text]
    for expression in OF_LLAMA_CPP[name]:
        cut = []
        for piece in pieces:
            ends = [0, *(end for match in regex.finditer(expression, piece) for end in match.span()), len(piece)]
            cut += [piece[a:b] for a, b in pairwise(ends) if a < b]
        pieces = cut
    return pieces


def tokenizer_cut_by(*steps: Any, **model: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[], **model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def split(expression: str) -> Any:
    return pre_tokenizers.Split(Regex(expression), behavior="isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt-2": tokenizer_cut_by(BYTES),
    "smollm": tokenizer_cut_by(pre_tokenizers.Digits(individual_digits=True), BYTES),
    "llama-bpe": tokenizer_cut_by(
        split(LLAMA3), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), ignore_merges=True
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_tokenizer_gets_the_name_under_which_llama_cpp_cuts_text_as_it_does(name):
    assert vocabulary(CUTS[name], 2).pre == name
    for text in TEXTS:
        pieces = CUTS[name].backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        ours = [text[start:end] for _, (start, end) in pieces]
        assert ours == cut_by_llama_cpp(text, name)
        assert len(ours) > 1
    others = [other for other in OF_LLAMA_CPP if other != name]
    assert all(any(cut_by_llama_cpp(t, other) != cut_by_llama_cpp(t, name) for t in TEXTS) for other in others)


@pytest.mark.parametrize(
    ("tokenizer", "cut"),
    [
        (tokenizer_cut_by(pre_tokenizers.Metaspace(), byte_fallback=True), "Metaspace"),
        (tokenizer_cut_by(pre_tokenizers.ByteLevel(add_prefix_space=True)), "ByteLevel"),
        (tokenizer_cut_by(pre_tokenizers.Digits(individual_digits=False), BYTES), "Digits, ByteLevel"),
        (tokenizer_cut_by(BYTES, ignore_merges=True), "ByteLevel"),
        (tokenizer_cut_by(split(r"\p{L}+"), BYTES), "Split, ByteLevel"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_has_no_name_for(tokenizer, cut):
    with pytest.raises(
        ModelError, match=rf"\(BPE, text cut by {cut}\) is none that is written as GGUF: .*gpt-2, smollm, llama-bpe"
    ):
        vocabulary(tokenizer, 2)


# -- Ollama ---------------------------------------------------------------------------------------------------------


def go(template: str, messages: Sequence[Message]) -> str:
    """What Go's text/template makes of the few actions that a Modelfile of ours has."""
    parts = re.split(r"\{\{ (.*?) \}\}", template)  # text and actions in turn

    def render(at: int, names: dict[str, Any]) -> tuple[str, int]:
        out = ""
        while at < len(parts):
            out += parts[at]
            action = parts[at + 1] if at + 1 < len(parts) else "end"
            at += 2
            if action == "end":
                break
            if loop := re.fullmatch(r"range (\$\w+), (\$\w+) := \.Messages", action):
                turns = [render(at, names | {loop[1]: i, loop[2]: message}) for i, message in enumerate(messages)]
                out, at = out + "".join(text for text, _ in turns), turns[0][1]
            elif condition := re.fullmatch(r"if (\$\w+)", action):
                text, at = render(at, names)
                out += text if names[condition[1]] else ""  # 0 is false, as in Python
            elif field := re.fullmatch(r"(\$\w+)\.(Role|Content)", action):
                out += getattr(names[field[1]], field[2].lower())
            else:
                raise AssertionError(action)
        return out, at

    return render(0, {})[0]


def test_ollama_shows_the_model_what_training_did(exported, chat):
    lines = (exported.parent / "Modelfile").read_text()
    assert lines.startswith(f"FROM ./{exported.name}\n")
    assert re.findall(r'^PARAMETER stop "(.*)"$', lines, re.M) == ["<|im_end|>", "<|im_start|>"]
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', lines, re.M | re.S)
    for messages in CONVERSATIONS:
        shown = chat.tokenizer.encode(go(template, messages), add_special_tokens=False)
        assert tuple(shown) == chat.prompt(Prompt("p", messages))


def test_a_template_that_is_not_chatml_is_left_to_ollama(llama, tiny_tokenizer, tmp_path):
    source = tmp_path / "plain"
    shutil.copytree(llama, source)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(source)
    options = ["export", "gguf", "--model", str(source), "--output_dir", str(tmp_path / "out"), "--dtype", "f16"]
    shown = CliRunner().invoke(app, options, prog_name="whelp").stdout
    assert "plain-f16.gguf" in shown
    assert "note: the chat template is not ChatML" in shown
    assert (tmp_path / "out" / "Modelfile").read_text() == 'FROM ./plain-f16.gguf\nPARAMETER stop "<|im_end|>"\n'


def test_a_system_prompt_that_would_end_the_modelfile_s_text(tiny_tokenizer):
    assert 'SYSTEM """Say "no"."""' in modelfile(Path("x.gguf"), tiny_tokenizer, 'Say "no".')
    with pytest.raises(ModelError, match="ends a text in a Modelfile"):
        modelfile(Path("x.gguf"), tiny_tokenizer, 'x"""\nFROM other')


# -- llama.cpp ------------------------------------------------------------------------------------------------------


def test_llama_cpp_sees_the_same_tokens_and_computes_the_same(exported, llama, chat, whole_model):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is compiled on install)")
    reader = llama_cpp.Llama(str(exported), n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    model = whole_model(llama)
    for messages in CONVERSATIONS:
        prompt = chat.prompt(Prompt("p", messages))
        text = chat.tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False)
        assert tuple(reader.tokenize(text.encode(), add_bos=False, special=True)) == prompt
        reader.reset()
        reader.eval(list(prompt))
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(torch.tensor(reader.scores[: len(prompt)]), expected, rtol=0, atol=1e-2)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gpt2"])
def test_other_families_are_refused(family, tiny_model_folder, tmp_path):
    with pytest.raises(
        ModelError, match=r"is a \w+ForCausalLM\w*; only LlamaForCausalLM is written|GPT2LMHeadModel; only Llama"
    ):
        export_gguf(tiny_model_folder(family), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "is a LlamaForSequenceClassification; only LlamaForCausalLM",
        ),
        ({"hidden_act": "gelu"}, "has the activation gelu and rotary positions of the type default"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rotary positions of the type linear",
        ),
    ],
)
def test_llamas_that_llama_cpp_would_compute_otherwise(changes, message, llama, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        export_gguf(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_and_tokens_that_do_not_fit(llama, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama, source)
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"][3, 3] = -1e5
    save_file(state, source / "model.safetensors", {"format": "pt"})
    for dtype in ("f16", "q8_0"):
        with pytest.raises(
            ModelError, match=r"lm_head\.weight holds numbers up to 1e\+05, which float16 cannot hold: give --dtype f32"
        ):
            export_gguf(source, tmp_path / "out", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    export_gguf(source, tmp_path / "out", "f32")
    with pytest.raises(ModelError, match=f"has {len(tiny_tokenizer)} tokens, its model's embedding 7 rows"):
        vocabulary(tiny_tokenizer, 7)
    with pytest.raises(ConfigError, match="dtype is q4_0, expected one of f16, f32, q8_0"):
        export_gguf(source, tmp_path / "other", "q4_0")
