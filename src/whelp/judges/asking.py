"""How a judge is asked: the words."""

from __future__ import annotations

from collections.abc import Sequence

from whelp.judges.base import Comparison
from whelp.types import Message

LETTERS = ("A", "B")
NAMES = {"user": "Human", "assistant": "Assistant", "system": "Instructions"}


def choice(comparison: Comparison) -> str:
    """A multiple choice, to be answered by a letter."""
    return (
        f"Here is a conversation:\n\n{transcript(comparison.messages)}\n\n"
        f"Two replies to the last message:\n\n(A) {comparison.first.strip()}\n\n(B) {comparison.second.strip()}\n\n"
        f"{comparison.principle.comparison}\n\nReply with the letter alone."
    )


def thoughtful_choice(comparison: Comparison) -> str:
    """A multiple choice to be thought about before the letter."""
    asked, _, _ = choice(comparison).rpartition("\n\n")
    how = "Compare them step by step in a few sentences. Then write the letter of the better one on a line of its own."
    return f"{asked}\n\n{how}"


def letter_alone() -> str:
    """What follows a chain of thought."""
    return "So which of the two is better? Reply with the letter alone."


def verdict(messages: Sequence[Message], answer: str, principle: str) -> str:
    """Whether one reply keeps a principle, to be answered by yes or no."""
    return (
        f"Here is a conversation:\n\n{transcript(messages)}\n\nThe reply:\n\n{answer.strip()}\n\n"
        f"The rule: {principle}\n\nDoes the reply keep the rule? Reply with yes or no alone."
    )


def transcript(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{NAMES[message.role]}: {message.content.strip()}" for message in messages)
