"""A model as a Hugging Face folder of its own, in the number format that is wanted, with a card."""

from __future__ import annotations

from pathlib import Path

import torch

from whelp.engines.devices import Compute
from whelp.errors import ConfigError
from whelp.export.card import card
from whelp.models.export import write_folder
from whelp.models.loading import load_whole
from whelp.runs.files import new_folder

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def export_hf(model: Path, out: Path, dtype: str = "bfloat16", name: str | None = None) -> None:
    """Write `out`, which `AutoModelForCausalLM` or `AutoModelForSequenceClassification` loads: of an ensemble the first member.
    The card calls it `name`, or as the folder is called.

    Raises `ConfigError` for another `dtype`, `ModelError` where there is no model, and `RunError` where `out` is not empty or
    cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype}, expected one of {', '.join(DTYPES)}.")
    with new_folder(out) as folder:
        whole, is_reward_model = load_whole(model, Compute(torch.device("cpu"), DTYPES[dtype], 1, "export"))
        state = whole.state_dict()
        if not is_reward_model and whole.config.tie_word_embeddings:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
        write_folder(folder, state, whole.config, "scalar" if is_reward_model else "lm", tokenizer_from=model)
        parameters = sum(tensor.numel() for tensor in state.values())
        text = card(model, name or out.absolute().name, dtype, whole.config, parameters, is_reward_model)
        (folder / "README.md").write_text(text, encoding="utf-8")
