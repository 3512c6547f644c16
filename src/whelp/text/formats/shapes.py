"""The data set formats: what keys tell a format, and one function that reads a record of it.

`DEMONSTRATIONS`, `RANKINGS` and `PROMPTS` are tried in order; the first format that a record has the keys of reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from whelp.text.formats import public
from whelp.text.formats.conversations import Problem, is_transcript, messages_of, option, prompt_of, text_of, turns_of
from whelp.text.formats.hashing import content_id
from whelp.text.formats.labels import label_of
from whelp.types import Demonstration, Message, Prompt, Ranking

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""ShareGPT's names of the roles."""
T = TypeVar("T", Demonstration, Ranking, Prompt)
Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format(Generic[T]):
    """One way to write a record down."""

    name: str
    keys: tuple[str, ...]
    """none where `looks_so` alone tells it"""
    read: Callable[[Values], T]
    looks_so: Callable[[Values], bool] = lambda row: True
    """What the values must look like, where keys alone do not tell."""

    def fits(self, row: Values) -> bool:
        return all(row.get(key) is not None for key in self.keys) and self.looks_so(row)


def messages(row: Values) -> Demonstration:
    return _demonstration(messages_of(row["messages"], "messages"), row)


def prompt_completion(row: Values) -> Demonstration:
    if row.get("label") is not None and not label_of(row["label"]):
        raise Problem("label says that the completion is bad, and a demonstration is imitated; take the record out")
    prompt, answer = answered(row)
    return _demonstration((*prompt.messages, Message("assistant", answer)), row)


def answered(row: Values) -> tuple[Prompt, str]:
    """A prompt and an answer to it."""
    prompt = prompt_only(row)
    return prompt, _answer(row["completion"], prompt.messages, "completion")


def sharegpt(row: Values) -> Demonstration:
    return _demonstration(messages_of(_turns(row), "conversations"), row)


def text(row: Values) -> Demonstration:
    if not is_transcript(row["text"]):
        raise Problem(
            "text does not say who speaks, so that nothing tells what is to be imitated; expected Human: and Assistant: turns"
        )
    return _demonstration(messages_of(row["text"], "text"), row)


def alpaca(row: Values) -> Demonstration:
    asked = alpaca_prompt(row).messages
    return _demonstration((*asked, Message("assistant", text_of(row["output"], "output"))), row)


def alpaca_prompt(row: Values) -> Prompt:
    """The input stands below the instruction."""
    parts = [text_of(row["instruction"], "instruction"), option(row, "input")]
    turns = (Message("user", "\n\n".join(part for part in parts if part)),)
    if system := option(row, "system"):
        turns = (Message("system", system), *turns)
    return prompt_of(turns, row, "instruction")


def sharegpt_prompt(row: Values) -> Prompt:
    return messages_prompt({**row, "messages": _turns(row)})


def _turns(row: Values) -> list[dict[str, Any]]:
    """ShareGPT's `from` and `value` as role and content."""
    said = row["conversations"]
    if not isinstance(said, list) or not all(
        isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in said
    ):
        raise Problem("conversations is not a list of objects with from and value")
    if unknown := sorted({str(turn["from"]) for turn in said} - SPEAKERS.keys()):
        raise Problem(f"conversations has a turn from {', '.join(unknown)}; expected {', '.join(SPEAKERS)}")
    return [{"role": SPEAKERS[turn["from"]], "content": turn["value"]} for turn in said]


def prompt_completions_labels(row: Values) -> Ranking:
    """What `joined` made of the answers to one prompt: every good one beats every bad one."""
    return prompt_completions_ranks({**row, "ranks": [1 if label else 2 for label in row["labels"]]})


def prompt_completions_ranks(row: Values) -> Ranking:
    prompt = prompt_only(row)
    completions, ranks = row["completions"], row["ranks"]
    if not isinstance(completions, list) or len(completions) < 2:
        raise Problem("completions is not a list of at least two")
    answers = tuple(_answer(c, prompt.messages, f"completion {i}") for i, c in enumerate(completions, start=1))
    if len(set(answers)) < 2:
        raise Problem("completions are all the same text")
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 1 for rank in ranks):
        raise Problem("ranks is not a list of whole numbers from 1 (best) on")
    if len(ranks) != len(answers):
        raise Problem(f"there are {len(answers)} completions and {len(ranks)} ranks")
    if len(set(zip(answers, ranks, strict=True))) > len(set(answers)):
        raise Problem("two completions are the same text and have different ranks")
    return Ranking(prompt, answers, tuple(ranks), option(row, "source") or "human", **_strength(row))


def prompt_chosen_rejected(row: Values) -> Ranking:
    prompt = prompt_only(row)
    chosen, rejected = (_answer(row[key], prompt.messages, key) for key in ("chosen", "rejected"))
    return _pair(prompt, chosen, rejected, row)


def chosen_rejected(row: Values) -> Ranking:
    """Both are whole conversations; the prompt is what they share."""
    for key in ("chosen", "rejected"):
        if isinstance(row[key], str) and not is_transcript(row[key]):
            raise Problem(f"{key} is an answer without its prompt; give the record a prompt")
    chosen, rejected = (_finished(messages_of(row[key], key), key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Problem("chosen and rejected differ before the last answer, so they share no prompt")
    return _pair(prompt_of(chosen[:-1], row, "prompt"), chosen[-1].content, rejected[-1].content, row)


def hh_transcripts(row: Values) -> Ranking:
    """Answers lose the spaces that stand between `Assistant:` and them."""
    answers = {key: row[key].strip() if isinstance(row[key], str) else row[key] for key in ("chosen", "rejected")}
    read = chosen_rejected if row.get("prompt") is None else prompt_chosen_rejected
    return read({**row, **answers})


def prompt_only(row: Values) -> Prompt:
    return prompt_of(messages_of(row["prompt"], "prompt"), row, "prompt")


def messages_prompt(row: Values) -> Prompt:
    return _asked(row, "messages")


def text_prompt(row: Values) -> Prompt:
    return _asked(row, "text")


def ranking_prompt(row: Values) -> Prompt:
    return chosen_rejected(row).prompt


def _is_hh(row: Values) -> bool:
    prompt = row.get("prompt")
    return is_transcript(row["chosen"] if prompt is None else prompt)


DEMONSTRATIONS: tuple[Format[Demonstration], ...] = (
    Format("messages", ("messages",), messages),
    Format("prompt/completion", ("prompt", "completion"), prompt_completion),
    Format("ShareGPT", ("conversations",), sharegpt),
    Format("Alpaca", ("instruction", "output"), alpaca),
    Format("text", ("text",), text),
)
RANKINGS: tuple[Format[Ranking], ...] = (
    Format("prompt/completions/ranks", ("prompt", "completions", "ranks"), prompt_completions_ranks),
    Format("HH transcripts", ("chosen", "rejected"), hh_transcripts, _is_hh),
    Format("prompt/chosen/rejected", ("prompt", "chosen", "rejected"), prompt_chosen_rejected),
    Format("chosen/rejected", ("chosen", "rejected"), chosen_rejected),
    Format("prompt/completion/label", ("prompt", "completions", "labels"), prompt_completions_labels),
)
PUBLIC_SETS: tuple[Format[Prompt], ...] = (
    Format("XSTest", (), public.xstest, public.is_xstest),
    Format("Do-Not-Answer", (), public.do_not_answer, public.is_do_not_answer),
    Format("TruthfulQA", (), public.truthful_qa, public.is_truthful_qa),
    Format("MT-Bench", (), public.mt_bench, public.is_mt_bench),
    Format("AlpacaEval", (), public.alpaca_eval, public.is_alpaca_eval),
)
PROMPTS: tuple[Format[Prompt], ...] = (
    *PUBLIC_SETS,
    Format("HH transcripts", ("prompt",), prompt_only, lambda row: is_transcript(row["prompt"])),
    Format("prompt", ("prompt",), prompt_only),
    Format("messages", ("messages",), messages_prompt),
    Format("HH transcripts", ("chosen", "rejected"), ranking_prompt, _is_hh),
    Format("chosen/rejected", ("chosen", "rejected"), ranking_prompt),
    Format("ShareGPT", ("conversations",), sharegpt_prompt),
    Format("Alpaca", ("instruction",), alpaca_prompt),
    Format("text", ("text",), text_prompt),
)


def _demonstration(turns: tuple[Message, ...], row: Values) -> Demonstration:
    turns = _finished(turns, "the conversation")
    return Demonstration(option(row, "id") or content_id(turns), turns, option(row, "category"))


def _asked(row: Values, key: str) -> Prompt:
    """A conversation without the answer that it may end with."""
    turns = messages_of(row[key], key)
    return prompt_of(turns[:-1] if turns[-1].role == "assistant" else turns, row, key)


def _finished(turns: tuple[Message, ...], what: str) -> tuple[Message, ...]:
    if turns[-1].role != "assistant":
        raise Problem(f"{what} does not end with the assistant's turn")
    return turns


def _answer(value: Any, prompt: tuple[Message, ...], what: str) -> str:
    """An answer given as text, as one assistant message, or as the whole conversation that it ends."""
    if not isinstance(value, list):
        return text_of(value, what)
    turns = turns_of(value, what)
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Problem(f"{what} is not one assistant message behind the prompt")
    return turns[0].content


def _pair(prompt: Prompt, chosen: str, rejected: str, row: Values) -> Ranking:
    if chosen == rejected:
        raise Problem("chosen and rejected are the same text")
    return Ranking(prompt, (chosen, rejected), (1, 2), option(row, "source") or "human", **_strength(row))


NUMBERS = {
    "probability": (
        0.5,
        1.0,
        "from 0.5 to 1, how likely the better answer is better; below 0.5, give the answers the other way round",
    ),
    "margin": (0.0, math.inf, "of 0 or more"),
    "weight": (1e-6, math.inf, "above 0"),
}
MARGINS = {
    "significantly better": 1.0,
    "better": 2 / 3,
    "slightly better": 1 / 3,
    "negligibly better": 0.0,
    "unsure": 0.0,
}
"""What annotators say of how much better an answer is, as a margin (Touvron et al. 2023, Llama 2, table 27, the small ones)."""


def _strength(row: Values) -> dict[str, float]:
    """What a record says of how sure its label is, how large the difference, how much it counts."""
    found = {}
    if row.get("strength") is not None:
        if row.get("margin") is not None:
            raise Problem("has both a margin and a strength, which becomes a margin; give one of them")
        found["margin"] = _margin(row["strength"])
    for key, (least, most, expected) in NUMBERS.items():
        value = row.get(key)
        if value is None:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
            or value == math.inf
        ):
            raise Problem(f"{key} is {value!r}; expected a number {expected}")
        found[key] = float(value)
    return found


def _margin(strength: Any) -> float:
    margin = MARGINS.get(strength.strip().lower()) if isinstance(strength, str) else None
    if margin is None:
        raise Problem(f"strength is {strength!r}; expected one of: {', '.join(MARGINS)}")
    return margin
