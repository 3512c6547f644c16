"""Score by a reward model that whelp did not make, exactly as `transformers` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Held
from whelp.text.chat import templated
from whelp.types import Completion, Message

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
    """In tokens; longer conversations lose their start, but for its first token."""

    def __call__(self, completions: Sequence[Completion], held: Held) -> Float[Tensor, "B"]:
        return self.scores(completions)

    @torch.no_grad()
    def scores(self, completions: Sequence[Completion]) -> Float[Tensor, "B"]:
        """By text alone."""
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
        """Raises `DataError` where the template refuses the conversation."""
        asked = completion.prompt.messages
        if self.tokenizer.chat_template is None:
            whole: Any = self.tokenizer("\n\n".join(message.content for message in asked), completion.text)
        else:
            said = templated(self.tokenizer, (*asked, Message("assistant", completion.text)))
            whole = self.tokenizer(said, add_special_tokens=False)
        return {key: self.cut(value) for key, value in whole.items()}

    def cut(self, values: list[int]) -> list[int]:
        """At most `max_length` values: the first, where a special token such as [CLS] may stand, and the last."""
        return values if len(values) <= self.max_length else [values[0], *values[len(values) - self.max_length + 1 :]]
