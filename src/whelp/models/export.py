"""Hugging Face folders: weights, config, tokenizer with its chat template, generation config, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from whelp import __version__
from whelp.errors import ModelError
from whelp.maths.posterior import HeadPosterior

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [whelp, rlhf]
---

# {title}

Made with whelp {version} from `{base}`.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

{note}
"""
POSTERIOR = "posterior.safetensors"
"""What the score of a reward model is sure of: mean [H] and root [H H] of `HeadPosterior`."""
LM_NOTE = (
    "Prompts go through the tokenizer's chat template. The run's manifest.json holds the exact recipe and data hashes."
)
REWARD_NOTE = (
    "The logit of the last token of a rendered conversation is its reward, up to the constant `reward_shift` in config.json "
    "(reward = logit - reward_shift). Render the conversation with the tokenizer's chat template. Of an ensemble this is the "
    "first member. The run's manifest.json holds the exact recipe and data hashes."
)


def write_folder(
    path: Path,
    state: Mapping[str, Tensor],
    config: PretrainedConfig,
    head: str,
    *,
    tokenizer_from: Path,
    members: Sequence[Mapping[str, Tensor]] = (),
) -> None:
    """Write what `AutoModelForCausalLM` or `AutoModelForSequenceClassification(num_labels=1)` loads.

    Further ensemble members hold their own layers and score only, in `member-<i>/model.safetensors`.
    """
    from transformers import GenerationConfig

    from whelp.models.loading import load_tokenizer
    from whelp.text.chat import close_template

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(tokenizer_from)
    if head == "scalar":
        close_template(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.architectures = [class_name(config, head)]
    _save(state, path / "model.safetensors")
    for i, member in enumerate(members, start=1):
        (path / f"member-{i}").mkdir(exist_ok=True)
        _save(member, path / f"member-{i}" / "model.safetensors")
    config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if head == "lm":
        from whelp.text.chat import end_ids

        ends = list(end_ids(tokenizer))
        GenerationConfig(
            eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=tokenizer.pad_token_id, do_sample=True
        ).save_pretrained(path)
    (path / "README.md").write_text(_card(path, config, head, tokenizer_from), encoding="utf-8")


def save_posterior(posterior: HeadPosterior, gain: float, folder: Path) -> None:
    """Of a head whose score was scaled by `gain`."""
    _save({"mean": posterior.mean, "root": gain * posterior.root}, folder / POSTERIOR)


def _save(state: Mapping[str, Tensor], file: Path) -> None:
    save_file(
        {name: tensor.detach().contiguous().cpu().clone() for name, tensor in state.items()}, file, {"format": "pt"}
    )


def class_name(config: PretrainedConfig, head: str) -> str:
    """The class of `transformers` that loads the exported folder. Raises `ModelError` where the family has none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if head == "lm" else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    found = names.get(config.model_type)
    if found is None:
        kind = "language model" if head == "lm" else "sequence classifier"
        raise ModelError(
            f"transformers has no {kind} of the family {config.model_type!r}, so nothing could load what would be written. Start "
            "this model from another family."
        )
    return found if isinstance(found, str) else found[0]


def _card(path: Path, config: PretrainedConfig, head: str, base: Path) -> str:
    is_lm = head == "lm"
    return CARD.format(
        task="text-generation" if is_lm else "text-classification",
        title=f"{path.parent.name}/{path.name}: {'a language model' if is_lm else 'a reward model'} ({config.model_type})",
        version=__version__,
        base=base.name,
        auto="AutoModelForCausalLM" if is_lm else "AutoModelForSequenceClassification",
        name=path.name,
        note=LM_NOTE if is_lm else REWARD_NOTE,
    )
