"""Answers in OpenAI's chat format, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whelp.serve.answers import Answer, Finish

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one reply begin with."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def completion(head: Head, prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return head.of("chat.completion") | {"choices": choices, "usage": usage(prompt_tokens, answers)}


def chunk(head: Head, delta: Mapping[str, str] | None = None, finish: Finish | None = None) -> dict[str, Any]:
    """A part of a streamed answer; without a delta, of none."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return head.of("chat.completion.chunk") | {"choices": [] if delta is None else [choice]}


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    said = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": said, "total_tokens": prompt_tokens + said}


def event(payload: Mapping[str, Any]) -> str:
    # In ASCII: some clients take U+2028 and the like for the end of a line, and so of the event.
    return f"data: {json.dumps(payload, separators=(',', ':'))}\n\n"
