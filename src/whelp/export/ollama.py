"""A Modelfile, by which `ollama create` takes a GGUF file in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from whelp.errors import ModelError
from whelp.text.chat import CHATML, end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GO_CHATML = """\
{{ range $i, $message := .Messages }}{{ if $i }}
{{ end }}<|im_start|>{{ $message.Role }}
{{ $message.Content }}<|im_end|>{{ end }}
<|im_start|>assistant
"""
"""`CHATML` in the syntax of Go, where 0 is false; with the header of the answer."""


def modelfile(gguf: Path, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> str:
    """For the file `gguf`, which lies beside it. A template other than ChatML is left to Ollama, which looks for its like among
    those that it knows. Raises `ModelError` for a system prompt that no Modelfile can hold."""
    ends = [tokenizer.convert_ids_to_tokens(id) for id in end_ids(tokenizer)]
    lines = [f"FROM ./{gguf.name}"]
    if is_chatml(tokenizer):
        lines.append(f'TEMPLATE """{GO_CHATML}"""')
        ends.append("<|im_start|>")
    if system_prompt:
        if '"""' in system_prompt:
            raise ModelError(
                'the system prompt of this model holds """, which ends a text in a Modelfile: train without it.'
            )
        lines.append(f'SYSTEM """{system_prompt}"""')
    return "\n".join([*lines, *(f'PARAMETER stop "{end}"' for end in dict.fromkeys(ends))]) + "\n"


def is_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template is exactly the one that `GO_CHATML` says."""
    return tokenizer.chat_template == CHATML
