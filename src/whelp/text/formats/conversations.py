"""The parts that formats share: texts, messages, transcripts; each says what is wrong with a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from whelp.checkers.kinds import validate
from whelp.errors import DataError
from whelp.text.formats.hashing import content_id
from whelp.types import Message, Prompt, Role

ROLES: tuple[Role, ...] = get_args(Role)
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKER_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


class Problem(Exception):
    """What is wrong with one record."""


def text_of(value: Any, what: str) -> str:
    """A string with something in it."""
    if not isinstance(value, str):
        raise Problem(f"{what} is not a string")
    if not value.strip():
        raise Problem(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair passes as JSON, but no tokenizer and no file can hold it.
        raise Problem(f"{what} holds half of a surrogate pair") from None
    return value


def option(row: Mapping[str, Any], key: str) -> str:
    """The string at an optional key, '' where it is absent; numbers are fine as ids."""
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Problem(f"{key} is not a string")
    return text_of(str(value), key) if value != "" else ""


def is_transcript(value: Any) -> bool:
    """Whether a string is a dialogue of `Human:` and `Assistant:`."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def messages_of(value: Any, what: str) -> tuple[Message, ...]:
    """A conversation from a list of messages, a transcript, or a plain string (one user turn)."""
    if is_transcript(value):
        return _transcript(text_of(value, what), what)
    if isinstance(value, str):
        return (Message("user", text_of(value, what)),)
    messages = turns_of(value, what)
    opening = messages[1:] if messages[0].role == "system" else messages
    if any(message.role == "system" for message in opening):
        raise Problem(f"{what} has a system message that is not the first and only one")
    if opening and opening[0].role != "user":
        raise Problem(f"{what} begins with an assistant turn; it must begin with the user's")
    return messages


def turns_of(value: Any, what: str) -> tuple[Message, ...]:
    """Messages, whatever their order."""
    if not isinstance(value, list) or not value:
        raise Problem(f"{what} is neither text nor a list of messages")
    return tuple(_message(message, f"{what}: turn {i}") for i, message in enumerate(value, start=1))


def prompt_of(messages: tuple[Message, ...], row: Mapping[str, Any], what: str) -> Prompt:
    """A prompt with what the record says about it."""
    if not messages or messages[-1].role != "user":
        raise Problem(f"{what} does not end with the user's turn")
    check = row.get("check")
    if check is not None:
        try:
            validate(check)
        except DataError as error:
            raise Problem(str(error)) from None
    id = option(row, "id") or content_id(messages)
    return Prompt(id, messages, option(row, "category"), check, option(row, "pair") or None)


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise Problem(f"{what} is not an object with role and content")
    role = value["role"]
    if role not in ROLES:
        raise Problem(f"{what} has the role {role!r}; expected {', '.join(ROLES)}")
    return Message(role, text_of(value["content"], f"{what} ({role})"))


def _transcript(text: str, what: str) -> tuple[Message, ...]:
    """The turns of a transcript; two turns of one speaker are one, and an open `Assistant:` at the end is none."""
    parts = _SPEAKER.split(text.strip().replace("\r\n", "\n"))
    turns: list[tuple[Role, str]] = [
        (_SPEAKER_ROLES[who], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    merged: list[Message] = []
    for i, (role, said) in enumerate(turns, start=1):
        content = text_of(said, f"{what}: turn {i} ({role})")
        if merged and merged[-1].role == role:
            content = f"{merged.pop().content}\n\n{content}"
        merged.append(Message(role, content))
    return tuple(merged)
