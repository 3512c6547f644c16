"""A conversation becomes tokens and a mask of what the assistant wrote.

Every model sees conversations through the chat template of its own tokenizer; this file finds the assistant's part
in whatever the template made. A finished conversation ends at its last end-of-turn token: a classifier reads the
last token, and the score of an answer stands on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from whelp.errors import ConfigError, DataError, ModelError
from whelp.types import Completion, Demonstration, Message, Prompt, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What bytes that are no character are read as."""

CHATML = (
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n' }}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{{ '\\n<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
"""ChatML with no system text of its own and nothing behind the last `<|im_end|>`."""

# The answer stands on its own line: a space before it would melt into its first token.
PLAIN = (
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n\\n' }}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ '\\n\\nAssistant:\\n' if add_generation_prompt else '' }}"
)
"""User: / Assistant: for tokenizers without a template; the tokenizer's eos token closes the assistant's turns."""
BASE = "{{ bos_token }}" + PLAIN
"""The same for a base model that never met a text without its bos token."""

LARGEST_GROUP = 4
"""Sampled answers to one prompt that are computed together."""

_ANSWER = "qwertz"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The tokens of one conversation, each with whether the assistant wrote it (its end-of-turn token included)."""

    tokens: tuple[int, ...]
    is_response: tuple[bool, ...]
    lost: Literal["", "start", "end"] = ""
    """What a conversation longer than the context lost: its oldest tokens, or the end of an answer that is too long alone."""


def sequences(rendered: Sequence[Rendered], group: Sequence[int] = ()) -> Sequences:
    """Rendered conversations as the engine takes them; `group` joins the completions of one prompt."""
    return Sequences([r.tokens for r in rendered], [r.is_response for r in rendered], group)


def truncated(rendered: Sequence[Rendered]) -> dict[str, int]:
    """How many conversations were longer than the context, and how many of them lost the end of an answer."""
    return {
        "truncated": sum(bool(one.lost) for one in rendered),
        "lost_end": sum(one.lost == "end" for one in rendered),
    }


def sampled(chat: Chat, completions: Sequence[Completion]) -> Sequences:
    """The very tokens that were sampled, behind their prompts. Answers to one prompt are a group, up to `LARGEST_GROUP` of them:
    no loss needs them in one piece, but what they share is computed once."""
    rendered = [chat.completion(chat.prompt(c.prompt), c.tokens) for c in completions]
    before: Counter[str] = Counter()
    groups: dict[tuple[str, int], int] = {}
    group = []
    for name in (c.prompt.id for c in completions):
        group.append(groups.setdefault((name, before[name] // LARGEST_GROUP), len(groups)))
        before[name] += 1
    return sequences(rendered, group)


@dataclass(frozen=True)
class Chat:
    """How one tokenizer renders conversations.

    `system_prompt` opens every conversation that has no system message of its own. `max_length` is the longest
    sequence in tokens: what is longer loses the oldest tokens of its prompt, and only where that is not enough the
    end of its response. Raises ModelError where the tokenizer has no template, no offsets or no end of turn, and
    ConfigError where the template has no place for `system_prompt`.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {_name(self.tokenizer)} is a slow one, which cannot say where a token stands in its "
                "text; use a model folder that has a tokenizer.json"
            )
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; a prompt and its answer need at least 2 tokens")
        _turn_end(self.tokenizer)
        if self.system_prompt:
            self._check_system_prompt(self.system_prompt)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation; every assistant turn is response."""
        conversation = self.with_system(messages)
        return self._render(conversation, [i for i, m in enumerate(conversation) if m.role == "assistant"])

    def demonstration(self, demonstration: Demonstration) -> Rendered:
        """A demonstration; every assistant turn is response."""
        return self.render(demonstration.messages)

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens up to where the assistant begins. Raises DataError where they are more than `max_length`."""
        tokens, _ = self._encode(
            templated(self.tokenizer, self.with_system(prompt.messages), add_generation_prompt=True)
        )
        if self.max_length is not None and len(tokens) > self.max_length:
            raise DataError(
                f"prompt {prompt.id!r} has {len(tokens)} tokens and the context is {self.max_length}: "
                "shorten the prompt, take it out, or raise max_length"
            )
        return tokens

    def answer(self, prompt: Prompt, text: str, is_finished: bool = True) -> Rendered:
        """A prompt with one answer: only that answer is response, earlier assistant turns are context. An answer that was cut
        off has no end of turn."""
        conversation = self.with_system((*prompt.messages, Message("assistant", text)))
        return self._render(conversation, [len(conversation) - 1], is_finished)

    def answer_tokens(self, prompt: Prompt, text: str, is_finished: bool = True) -> tuple[int, ...]:
        """Those of an answer that another tokenizer wrote."""
        rendered = self.answer(prompt, text, is_finished)
        return tuple(token for token, is_own in zip(rendered.tokens, rendered.is_response, strict=True) if is_own)

    def completion(self, prompt_tokens: Sequence[int], response_tokens: Sequence[int]) -> Rendered:
        """A sampled answer, in the very tokens that were sampled."""
        is_response = (False,) * len(prompt_tokens) + (True,) * len(response_tokens)
        return _fit((*prompt_tokens, *response_tokens), is_response, self.max_length)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """What each token adds to the text; a character of which some bytes are still to come waits for them."""
        seen: list[int] = []
        said = text = ""
        for token in tokens:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith(REPLACEMENT):
                yield text[len(said) :]
                said = text
        yield text[len(said) :]

    def with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Opened by `system_prompt`, where they have no system message of their own."""
        if self.system_prompt and not any(message.role == "system" for message in messages):
            return (Message("system", self.system_prompt), *messages)
        return tuple(messages)

    @cached_property
    def _end(self) -> str:
        return _turn_end(self.tokenizer)

    def _check_system_prompt(self, system_prompt: str) -> None:
        name = _name(self.tokenizer)
        remedy = "drop system_prompt, or use a model whose template has a place for it"
        try:
            text = templated(self.tokenizer, (Message("system", system_prompt), Message("user", "Hello")))
        except DataError as error:
            raise ConfigError(f"system_prompt is set, but the chat template of {name} refuses it; {remedy}") from error
        if system_prompt.strip() not in text:
            raise ConfigError(f"system_prompt is set, but the chat template of {name} leaves it out; {remedy}")

    def _render(self, messages: tuple[Message, ...], turns: Sequence[int], is_finished: bool = True) -> Rendered:
        text = templated(self.tokenizer, messages)
        spans = [self._span(text, messages, turn) for turn in turns]
        if messages[-1].role == "assistant":
            text = text[: spans[-1].stop - (0 if is_finished else len(self._end))]
        tokens, starts = self._encode(text)
        # By its start alone: a token that melts the header's end and the answer's beginning is given, not written.
        is_response = tuple(any(start in span for span in spans) for start in starts)
        return _fit(tokens, is_response, self.max_length)

    def _span(self, text: str, messages: tuple[Message, ...], turn: int) -> range:
        """Characters of one assistant turn, from behind its header to the end of its end-of-turn token."""
        if turn == 0:
            raise DataError(
                "a conversation begins with an assistant turn; it must begin with the user's (or a system one)"
            )
        header = templated(self.tokenizer, messages[:turn], add_generation_prompt=True)
        content = messages[turn].content.strip()
        rest = text[len(header) :]
        # An end-of-turn string inside the content ends nothing, so the search for the real one starts behind it.
        behind = len(header) + len(rest) - len(rest.lstrip())
        behind += len(content) if text.startswith(content, behind) else 0
        end = text.find(self._end, behind)
        if not text.startswith(header) or end < 0:
            raise DataError(
                f"the chat template of {_name(self.tokenizer)} rewrites earlier turns, so the assistant's turn "
                f"{turn + 1} of {len(messages)} cannot be found in what it made; use single-turn data, "
                "or give the tokenizer another chat template"
            )
        return range(len(header), end + len(self._end))

    def _encode(self, text: str) -> tuple[tuple[int, ...], list[int]]:
        """Tokens, and the character at which each starts."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return tuple(encoding["input_ids"]), [start for start, _ in encoding["offset_mapping"]]


def ensure_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template the plain one. Raises ModelError where it has no eos token either."""
    if tokenizer.chat_template:
        return
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {_name(tokenizer)} has neither a chat template nor an eos token, so nothing can end an "
            "answer; add one of them to its tokenizer_config.json"
        )
    tokenizer.chat_template = PLAIN


def close_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a whole conversation end with the end of its last turn, where whelp scores it: some templates put a newline behind
    that, and a classifier of `transformers` would read the newline."""
    text = templated(tokenizer, (Message("user", "Hello"), Message("assistant", "Hi")))
    if text != text.rstrip():
        whole = "{% set whole %}" + str(tokenizer.chat_template) + "{% endset %}"
        tokenizer.chat_template = whole + "{{ whole if add_generation_prompt else whole.rstrip() }}"


def end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids that end a turn: eos, and what the template puts behind the assistant's content."""
    first, *rest = tokenizer.encode(_turn_end(tokenizer), add_special_tokens=False)
    # An end of several ordinary tokens ("### End") has a first token that answers may use.
    is_a_mark = not rest or first in tokenizer.added_tokens_decoder
    ids = (_named_id(tokenizer, "eos"), first if is_a_mark else None)
    return tuple(dict.fromkeys(id for id in ids if id is not None))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An existing id for padding that ends no turn and that no template uses. Raises ModelError where there is none."""
    taken = {*end_ids(tokenizer), _named_id(tokenizer, "bos"), *_template_ids(tokenizer)}
    for id in (_named_id(tokenizer, "pad"), _named_id(tokenizer, "unk"), *_spare_ids(tokenizer)):
        if id is not None and id not in taken:
            return id
    raise ModelError(
        f"the tokenizer of {_name(tokenizer)} has no token to pad with: its pad token is missing or ends turns, and "
        "it has no unused special token; add a pad token to the tokenizer and resize the model's embedding to it"
    )


def _spare_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens, those first whose name says that they are there to be used."""

    def rank(content: str) -> int:
        return 0 if "pad" in content else 1 if re.search("reserved|unused", content) else 2

    tokens = [(rank(t.content.lower()), id) for id, t in tokenizer.added_tokens_decoder.items() if t.special]
    return [id for _, id in sorted(tokens)]


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of a small conversation; an unk that turns up in it is not an unused one."""
    asked = (Message("user", "Hello"),)
    texts = [
        templated(tokenizer, (*asked, Message("assistant", _ANSWER))),
        templated(tokenizer, asked, add_generation_prompt=True),
    ]
    return {id for text in texts for id in tokenizer.encode(text, add_special_tokens=False)}


def _named_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    id = getattr(tokenizer, f"{name}_token_id")
    return id if isinstance(id, int) else None


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the template puts behind the assistant's content, up to the first whitespace behind it."""
    text = templated(tokenizer, (Message("user", "Hello"), Message("assistant", _ANSWER)))
    end = text.rpartition(_ANSWER)[2].split()
    if not end:
        raise ModelError(
            f"the chat template of {_name(tokenizer)} puts nothing behind the assistant's answer, so a model could not "
            "learn to end its turn; give the tokenizer a template with an end-of-turn token"
        )
    return end[0]


def templated(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = False
) -> str:
    """What the template makes of messages. Raises DataError where it refuses them."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {_name(tokenizer)} has no chat template; call ensure_template first")
    if not messages:
        raise DataError("a conversation has no messages; it needs at least the user's turn")
    turns = [message.as_dict() for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        hint = "; drop system_prompt, or the data's system messages" if messages[0].role == "system" else ""
        raise DataError(
            f"the chat template of {_name(tokenizer)} refuses a conversation of the turns {roles}: {error}{hint}"
        ) from error
    assert isinstance(text, str)
    return text


def _fit(tokens: tuple[int, ...], is_response: tuple[bool, ...], max_length: int | None) -> Rendered:
    """Cut to max_length: the oldest tokens go first, then the end of the last response."""
    if max_length is None or len(tokens) <= max_length:
        return Rendered(tokens, is_response)
    start = len(tokens) - max_length
    if True in is_response:
        # One token stays before the last response: its first token would have no context otherwise.
        start = min(start, max(_last_response(is_response) - 1, 0))
    kept = slice(start, start + max_length)
    lost = "end" if kept.stop < len(tokens) else "start"
    return Rendered(tokens[kept], (False, *is_response[kept][1:]), lost)


def _last_response(is_response: tuple[bool, ...]) -> int:
    """Where the last run of response tokens begins."""
    first = len(is_response) - 1 - is_response[::-1].index(True)
    while first > 0 and is_response[first - 1]:
        first -= 1
    return first


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "this model"
