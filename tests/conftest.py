"""Shapes are checked while tests run; tiny models of every family stand in for the real ones."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Before torch counts the cores: workers whose threads share cores wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

if importlib.util.find_spec("beartype"):  # a development dependency: without it the tests run, shapes unchecked
    from jaxtyping import install_import_hook

    install_import_hook(["whelp.maths", "whelp.engines", "whelp.models"], "typecheck.checked")

import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from whelp.engines.devices import Compute
from whelp.text.chat import CHATML, Chat

pytest.register_assert_rewrite("engine_helpers", "report_helpers")
settings.register_profile("whelp", deadline=None)  # how long an example takes is the machine's business
settings.load_profile("whelp")

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
CORPUS = [
    "Hello there, how are you today?",
    "I am fine. The end.\n",
    "user assistant system\n",
    "two and two is four",
] * 4

SHARED = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
OWN = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 8, "tie_word_embeddings": False},
    "gemma3_text": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
}
GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr and (typecheck := sys.modules.get("typecheck")) is not None:
        typecheck.FirstCalls.limit = sys.maxsize


def pytest_runtest_setup() -> None:
    if (typecheck := sys.modules.get("typecheck")) is not None:
        typecheck.FirstCalls.calls = 0


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def compute() -> Compute:
    """fp32 on the CPU, one thread."""
    return Compute(torch.device("cpu"), torch.float32, 1, "tests")


@pytest.fixture(scope="session")
def compute_bf16() -> Compute:
    return Compute(torch.device("cpu"), torch.bfloat16, 1, "tests")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 300 tokens, with the special tokens of ChatML and a pad token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def chat(tiny_tokenizer: PreTrainedTokenizerFast) -> Chat:
    return Chat(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """`tiny_model_folder(family, **config)`: the folder of a random model of 4 layers, made once a session."""
    made: dict[str, Path] = {}

    def folder(family: str = "llama", *, seed: int = 0, **changes: object) -> Path:
        name = f"{family}-{seed}-{sorted(changes.items())}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp(family)
            _save_model(made[name], family, tiny_tokenizer, seed, changes)
        return made[name]

    return folder


def _save_model(
    path: Path, family: str, tokenizer: PreTrainedTokenizerFast, seed: int, changes: dict[str, object]
) -> None:
    sizes = GPT2 if family == "gpt2" else SHARED | OWN[family]
    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(family, **{"vocab_size": len(tokenizer), **sizes, **ids, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # norms and biases that are all ones or zeros would hide a lost one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="session")
def whole_model() -> Callable[..., torch.nn.Module]:
    """`whole_model(folder, dtype)`: the uncut model, freshly loaded: the oracle."""

    def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    return load
