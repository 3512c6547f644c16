"""Score by a reward model that whelp did not make, exactly as `transformers` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Held
from whelp.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 16


@dataclass(frozen=True)
class ClassifierReward:
    """The one logit of any sequence classifier, whatever its family: its own tokenizer, its own chat template (or, where it has
    none, prompt and answer as two segments), its own choice of the token that is read."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """In tokens; longer conversations lose their start."""

    @torch.no_grad()
    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        encoded = [self.encode(completion) for completion in completions]
        by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        size = BATCH if self.tokenizer.pad_token_id is not None else 1
        scores = torch.zeros(len(encoded))
        for start in range(0, len(by_length), size):
            rows = by_length[start : start + size]
            batch = {key: [encoded[i][key] for i in rows] for key in encoded[rows[0]]}
            if size > 1:
                batch = self.tokenizer.pad(batch, padding_side="right")
            inputs = {key: torch.tensor(value, device=self.model.device) for key, value in batch.items()}
            scores[rows] = self.model(**inputs).logits[:, 0].float().cpu()
        return scores

    def encode(self, completion: Completion) -> dict[str, list[int]]:
        turns = [{"role": m.role, "content": m.content} for m in completion.prompt.messages]
        whole: Any
        if self.tokenizer.chat_template is None:
            said = "\n\n".join(turn["content"] for turn in turns)
            whole = self.tokenizer(said, completion.text)
        else:
            turns.append({"role": "assistant", "content": completion.text})
            whole = self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        return {key: value[-self.max_length :] for key, value in whole.items()}
