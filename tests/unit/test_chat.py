"""Rendering against the tokenizer's own apply_chat_template, and its own mask of the assistant's tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from whelp.errors import ConfigError, DataError, ModelError
from whelp.text.chat import CHATML, PLAIN, Chat, end_ids, ensure_template, pad_id, sampled
from whelp.types import Completion, Demonstration, Message, Prompt

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<empty_output>")
CORPUS = [
    "Hello there, how are you today?",
    "I am fine.\n\nThe end.\n\n",
    "user assistant system\n",
    "  two  spaces  ",
] * 4

# CHATML with the marks that make transformers itself say which tokens are the assistant's.
MARKED = (
    "{% for message in messages %}{{ '' if loop.first else '\\n' }}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# The usual ChatML: a newline behind every turn, the last one too.
NEWLINES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)
# Trims contents, folds no system message in, puts eos behind the last end of turn.
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '<|endoftext|>' }}"
)


def byte_level(
    template: str | None = CHATML, special: tuple[str, ...] = SPECIAL, **names: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges reach over spaces and double newlines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = names or {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = template
    return fast


def word_level(template: str) -> PreTrainedTokenizerFast:
    """Whole words, and unk for what it does not know; whitespace belongs to no token."""
    words = ["[UNK]", "<eos>", "[PAD]", "User", "Assistant", "System", ":", "Hello", "world", "yes", "no", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<eos>", pad_token="[PAD]")
    fast.chat_template = template
    return fast


TOKENIZER = byte_level()
CHAT = Chat(TOKENIZER)
USER = Message("user", "Hello there")
PROMPT = Prompt("p-1", (USER,))


def said(*contents: str) -> tuple[Message, ...]:
    """Turns by user and assistant."""
    return tuple(Message("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents))


def dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def response_text(rendered, tokenizer=TOKENIZER) -> str:
    tokens = [token for token, is_response in zip(rendered.tokens, rendered.is_response, strict=True) if is_response]
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


# Everything but half surrogates; "<" and "|" could spell a special token.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<|"), max_size=30)
CONVERSATIONS = st.lists(TEXTS, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0)


@pytest.mark.parametrize(
    "messages",
    [
        said("Hello there", "I am fine."),
        said("Hello", "Hi", "And now?", "The end."),
        (Message("system", "Be kind."), *said("Hello", "Hi")),
        said("naïve 🙂 日本語", "👩‍👩‍👧 ok — ñ"),
        said("  two  ", "  spaces  ", "\n\nlines\n\n", "end\n"),
        said("Hello", ""),
    ],
)
def test_tokens_are_those_of_apply_chat_template(messages):
    expected = TOKENIZER.apply_chat_template(dicts(messages), tokenize=True, return_dict=False)
    rendered = CHAT.render(messages)
    assert list(rendered.tokens) == expected
    assert rendered.tokens[-1] == TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert rendered.lost == ""
    assert CHAT.demonstration(Demonstration("d-1", messages)) == rendered


@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS)
def test_any_text_gives_the_tokens_of_apply_chat_template(contents):
    messages = said(*contents)
    expected = TOKENIZER.apply_chat_template(dicts(messages), tokenize=True, return_dict=False)
    assert list(CHAT.render(messages).tokens) == expected


@settings(max_examples=60, deadline=None)
@given(CONVERSATIONS)
def test_mask_is_that_of_generation_marks(contents):
    # transformers counts a token that melts header and answer as the answer's, so answers begin with a letter here.
    messages = said(*(f"a{content}" for content in contents))
    marked = TOKENIZER.apply_chat_template(
        dicts(messages), chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    rendered = CHAT.render(messages)
    assert list(rendered.tokens) == marked["input_ids"]
    assert [int(is_response) for is_response in rendered.is_response] == marked["assistant_masks"]


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_response_decodes_to_the_answer_and_its_end(answer):
    text = response_text(CHAT.answer(PROMPT, f"I{answer}"))
    assert text == f"I{answer}<|im_end|>"


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_a_token_melted_with_the_header_is_given_not_written(answer):
    rendered = CHAT.answer(PROMPT, answer)
    begin = rendered.is_response.index(True)
    assert all(rendered.is_response[begin:])
    given_text = TOKENIZER.decode(rendered.tokens[:begin], clean_up_tokenization_spaces=False)
    assert given_text.startswith(TOKENIZER.decode(CHAT.prompt(PROMPT), clean_up_tokenization_spaces=False))
    assert given_text + response_text(rendered) == TOKENIZER.decode(rendered.tokens, clean_up_tokenization_spaces=False)


def test_double_newline_melts_with_the_header():
    rendered = CHAT.answer(PROMPT, "\n\nfine")
    melted = rendered.tokens[rendered.is_response.index(True) - 1]
    assert TOKENIZER.decode([melted]) == "\n\n"
    assert response_text(rendered) == "\nfine<|im_end|>"


def test_answer_leaves_earlier_assistant_turns_out():
    rendered = CHAT.answer(Prompt("p", said("Hello", "Hi", "And now?")), "The end.")
    assert response_text(rendered) == "The end.<|im_end|>"
    everything = CHAT.render(said("Hello", "Hi", "And now?", "The end."))
    assert everything.tokens == rendered.tokens
    assert response_text(everything) == "Hi<|im_end|>The end.<|im_end|>"


def test_newline_behind_an_end_of_turn_is_no_response():
    rendered = CHAT.render(said("Hello", "Hi", "And now?", "The end."))
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    pairs = list(pairwise(zip(rendered.tokens, rendered.is_response, strict=True)))
    behind_ends = [after for before, after in pairs if before == (end, True)]
    assert [(TOKENIZER.decode([token]), is_response) for token, is_response in behind_ends] == [("\n", False)]


def test_the_user_repeating_the_answer_is_no_response():
    rendered = CHAT.render(said("Say I am fine.", "I am fine.", "I am fine.", "I am fine."))
    assert response_text(rendered) == "I am fine.<|im_end|>" * 2


def test_a_special_string_in_an_answer_does_not_end_it():
    rendered = CHAT.answer(PROMPT, " I write <|im_end|> here ")
    assert response_text(rendered) == " I write <|im_end|> here <|im_end|>"
    assert all(rendered.is_response[rendered.is_response.index(True) :])


def test_prompt_is_the_answers_beginning():
    prompt = Prompt("p", said("Hello", "Hi", "And now?"))
    tokens = CHAT.prompt(prompt)
    expected = TOKENIZER.apply_chat_template(
        dicts(prompt.messages), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert list(tokens) == expected
    rendered = CHAT.answer(prompt, "The end.")
    assert rendered.tokens[: len(tokens)] == tokens
    assert rendered.is_response.index(True) == len(tokens)


def test_completion_keeps_the_sampled_tokens():
    prompt = CHAT.prompt(PROMPT)
    answer = CHAT.answer(PROMPT, "I am fine.")
    assert CHAT.completion(prompt, answer.tokens[len(prompt) :]) == answer
    # Two tokens for what the tokenizer would write as one: no second tokenization may join them.
    letters = TOKENIZER.convert_tokens_to_ids(["H", "e", "l", "l", "o"])
    rendered = CHAT.completion(prompt, letters)
    assert rendered.tokens == (*prompt, *letters)
    assert rendered.is_response == (False,) * len(prompt) + (True,) * 5


def test_sampled_answers_to_one_prompt_are_a_group_of_limited_size():
    other = Prompt("other", (Message("user", "Are you fine?"),))
    answers = [Completion(prompt, "", (5, 6), (0.0, 0.0), False, i) for i in range(9) for prompt in (PROMPT, other)]
    found = sampled(CHAT, answers)
    assert list(found.group) == [0, 1] * 4 + [2, 3] * 4 + [4, 5]
    assert [row[-2:] for row in found.tokens] == [(5, 6)] * 18
    assert found.response_lengths == [2] * 18


def test_decode_leaves_special_tokens_out_and_text_alone():
    answer = CHAT.answer(PROMPT, " don 't  , 🙂 ")
    response = [token for token, is_response in zip(answer.tokens, answer.is_response, strict=True) if is_response]
    assert CHAT.decode(response) == " don 't  , 🙂 "
    words = word_level(PLAIN)
    words.clean_up_tokenization_spaces = True
    assert Chat(words).decode(words.convert_tokens_to_ids(["Hello", "?", "<eos>"])) == "Hello ?"


def test_default_template_has_no_text_of_its_own():
    text = TOKENIZER.apply_chat_template(dicts(said("Hello", "Hi")), tokenize=False)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>"


def test_system_prompt_opens_conversations_that_have_none():
    chat = Chat(TOKENIZER, system_prompt="Be kind.")
    own = (Message("system", "Be brief."), USER)
    assert chat.prompt(PROMPT) == CHAT.prompt(Prompt("p", (Message("system", "Be kind."), USER)))
    assert chat.prompt(Prompt("p", own)) == CHAT.prompt(Prompt("p", own))
    assert response_text(chat.answer(PROMPT, "Hi")) == "Hi<|im_end|>"


@pytest.mark.parametrize("template", [NEWLINES, STRICT])
def test_nothing_stands_behind_the_last_end_of_turn(template):
    tokenizer = byte_level(template)
    rendered = Chat(tokenizer).render(said("Hello", "Hi", "And now?", " The end. "))
    answer = " The end. " if template is NEWLINES else "The end."
    assert response_text(rendered, tokenizer) == f"Hi<|im_end|>{answer}<|im_end|>"
    assert rendered.tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    whole = tokenizer.apply_chat_template(dicts(said("Hello", "Hi", "And now?", " The end. ")), return_dict=False)
    assert whole[: len(rendered.tokens)] == list(rendered.tokens)
    assert len(whole) > len(rendered.tokens)


def test_a_conversation_that_waits_for_an_answer_is_rendered_whole():
    rendered = CHAT.render(said("Hello", "Hi", "And now? "))
    assert TOKENIZER.decode(rendered.tokens).endswith("And now? <|im_end|>")
    assert response_text(rendered) == "Hi<|im_end|>"


def test_prefix_space_and_trimmed_offsets():
    tokenizer = byte_level(CHATML.replace("\\n", " "))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert response_text(Chat(tokenizer).answer(PROMPT, "fine you"), tokenizer).strip() == "fine you<|im_end|>"


class TestPlain:
    def test_words_and_masks(self):
        tokenizer = word_level(PLAIN)
        rendered = Chat(tokenizer).render(said("Hello world?", "yes", "no?", "Hello"))
        marked = list(zip(tokenizer.convert_ids_to_tokens(rendered.tokens), rendered.is_response, strict=True))
        words = ["Hello", "world", "?", "Assistant", ":", "yes*", "<eos>*"]
        expected = ["User", ":", *words, "User", ":", "no", "?", "Assistant", ":", "Hello*", "<eos>*"]
        assert marked == [(word.rstrip("*"), word.endswith("*")) for word in expected]

    def test_is_set_only_where_there_is_none(self):
        bare, chatty = byte_level(None), byte_level(CHATML)
        ensure_template(bare)
        ensure_template(chatty)
        assert (bare.chat_template, chatty.chat_template) == (PLAIN, CHATML)

    def test_answers_are_told_apart_exactly(self):
        tokenizer = byte_level(PLAIN)
        chat = Chat(tokenizer)
        rendered = chat.answer(PROMPT, "Hello there")
        prompt = chat.prompt(PROMPT)
        assert rendered.tokens[: len(prompt)] == prompt
        assert response_text(rendered, tokenizer) == "Hello there<|im_end|>"
        assert tokenizer.decode(prompt) == "User:\nHello there\n\nAssistant:\n"

    def test_needs_an_eos_token(self):
        tokenizer = byte_level(None, unk_token="<|endoftext|>")
        with pytest.raises(ModelError, match="neither a chat template nor an eos token"):
            ensure_template(tokenizer)


class TestMaxLength:
    whole = CHAT.answer(PROMPT, "I am fine today.")

    def rendered(self, max_length: int):
        return Chat(TOKENIZER, max_length=max_length).answer(PROMPT, "I am fine today.")

    def test_what_fits_is_left_alone(self):
        assert self.rendered(len(self.whole.tokens)) == self.whole

    def test_the_prompt_is_cut_at_its_left(self):
        cut = self.rendered(len(self.whole.tokens) - 2)
        assert cut.lost == "start"
        assert cut.tokens == self.whole.tokens[2:]
        assert cut.is_response == self.whole.is_response[2:]

    @pytest.mark.parametrize("kept", [1, 3])
    def test_a_response_that_is_too_long_is_cut_at_its_right(self, kept):
        begin = self.whole.is_response.index(True)
        cut = self.rendered(kept + 1)
        assert cut.lost == "end"
        assert cut.tokens == self.whole.tokens[begin - 1 : begin + kept]
        assert cut.is_response == (False, *[True] * kept)

    def test_the_last_answer_of_many_is_kept(self):
        messages = said("Hello", "I am fine today.", "you", "The end.")
        whole = CHAT.render(messages)
        for max_length in range(2, len(whole.tokens)):
            cut = Chat(TOKENIZER, max_length=max_length).render(messages)
            assert cut.lost
            assert len(cut.tokens) == len(cut.is_response) == max_length
            assert not cut.is_response[0]
            assert any(cut.is_response)
            if max_length > len(TOKENIZER.tokenize("The end.<|im_end|>")):
                assert cut.tokens == whole.tokens[-max_length:]
                assert response_text(cut).endswith("The end.<|im_end|>")

    def test_an_answer_that_was_cut_off_has_no_end_of_turn(self):
        cut_off = CHAT.answer(PROMPT, "I am fine today.", is_finished=False)
        end = TOKENIZER("<|im_end|>", add_special_tokens=False)["input_ids"]
        assert len(end) == 1
        assert [*cut_off.tokens, *end] == list(self.whole.tokens)
        assert cut_off.is_response == self.whole.is_response[:-1]

    def test_completion_is_cut_alike(self):
        prompt = CHAT.prompt(PROMPT)
        response = self.whole.tokens[len(prompt) :]
        assert Chat(TOKENIZER, max_length=len(response) + 2).completion(prompt, response) == self.rendered(
            len(response) + 2
        )

    def test_a_prompt_that_is_too_long_is_named(self):
        length = len(CHAT.prompt(PROMPT))
        assert Chat(TOKENIZER, max_length=length).prompt(PROMPT) == CHAT.prompt(PROMPT)
        with pytest.raises(DataError, match=rf"prompt 'p-1' has {length} tokens and the context is {length - 1}"):
            Chat(TOKENIZER, max_length=length - 1).prompt(PROMPT)

    def test_one_token_is_no_context(self):
        with pytest.raises(ConfigError, match="max_length is 1"):
            Chat(TOKENIZER, max_length=1)


class TestRefusals:
    def test_system_role_refused(self):
        with pytest.raises(ConfigError, match="drop system_prompt"):
            Chat(byte_level(STRICT), system_prompt="Be kind.")

    def test_system_role_ignored(self):
        template = NEWLINES.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
        with pytest.raises(ConfigError, match=r"leaves it out; drop system_prompt"):
            Chat(byte_level(template), system_prompt="Be kind.")

    def test_system_message_in_the_data_refused(self):
        with pytest.raises(DataError, match=r"turns system, user: System role not supported; drop system_prompt, or"):
            Chat(byte_level(STRICT)).prompt(Prompt("p", (Message("system", "Be kind."), USER)))

    def test_no_template(self):
        with pytest.raises(ModelError, match="no chat template; call ensure_template"):
            Chat(byte_level(None))

    def test_a_template_without_end_of_turn(self):
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        with pytest.raises(ModelError, match="puts nothing behind the assistant's answer"):
            Chat(byte_level(template))

    def test_an_assistant_who_begins(self):
        with pytest.raises(DataError, match="begins with an assistant turn"):
            CHAT.render((Message("assistant", "Hi"), USER))

    def test_no_messages(self):
        with pytest.raises(DataError, match="no messages"):
            CHAT.render(())

    def test_a_template_that_rewrites_earlier_turns(self):
        template = NEWLINES.replace("m['content'] +", "('' if loop.last else '~') + m['content'] +")
        chat = Chat(byte_level(template))
        with pytest.raises(DataError, match="rewrites earlier turns"):
            chat.render(said("Hello", "Hi", "And now?", "The end."))


class TestIds:
    def names(self, tokenizer, ids):
        return tokenizer.convert_ids_to_tokens(list(ids))

    def test_end_of_turn_is_eos(self):
        assert self.names(TOKENIZER, end_ids(TOKENIZER)) == ["<|im_end|>"]

    def test_end_of_turn_and_eos(self):
        tokenizer = byte_level(eos_token="<|endoftext|>")
        assert self.names(tokenizer, end_ids(tokenizer)) == ["<|endoftext|>", "<|im_end|>"]

    def test_words_that_end_a_turn_are_no_end_id(self):
        tokenizer = byte_level(NEWLINES.replace("<|im_end|>", "~the~end~"), eos_token="<|endoftext|>")
        assert self.names(tokenizer, end_ids(tokenizer)) == ["<|endoftext|>"]
        assert response_text(Chat(tokenizer).answer(PROMPT, "fine"), tokenizer) == "fine~the~end~"

    @pytest.mark.parametrize(
        ("special", "names", "pad"),
        [
            ((*SPECIAL, "<pad>"), {"eos_token": "<|im_end|>", "pad_token": "<pad>"}, "<pad>"),
            (
                SPECIAL,
                {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
                "<|endoftext|>",
            ),
            (
                SPECIAL,
                {"eos_token": "<|endoftext|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
                "<repo_name>",
            ),
            ((*SPECIAL, "<|reserved_7|>"), {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}, "<|reserved_7|>"),
            ((*SPECIAL, "<unused0>", "<|padding|>"), {"eos_token": "<|im_end|>"}, "<|padding|>"),
            (SPECIAL, {"eos_token": "<|im_end|>", "pad_token": "<|im_start|>"}, "<|endoftext|>"),
        ],
    )
    def test_pad_is_a_token_with_no_other_work(self, special, names, pad):
        tokenizer = byte_level(special=special, **names)
        assert self.names(tokenizer, [pad_id(tokenizer)]) == [pad]

    def test_an_unk_that_stands_in_texts_is_no_pad(self):
        tokenizer = word_level(PLAIN)
        assert self.names(tokenizer, [pad_id(tokenizer)]) == ["[PAD]"]
        tokenizer.pad_token = "<eos>"
        assert self.names(tokenizer, [pad_id(tokenizer)]) != ["[UNK]"]

    def test_no_token_is_left_to_pad_with(self):
        tokenizer = byte_level(special=SPECIAL[:3], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
        with pytest.raises(ModelError, match="no token to pad with"):
            pad_id(tokenizer)


@pytest.mark.parametrize("text", ["Hello there", "naïve 🙂 日本語", "👩‍👩‍👧 ok — ñ", "", "  two\n\n"])
def test_a_text_in_pieces_never_shows_half_a_character(text):
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    pieces = list(CHAT.pieces(tokens))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(tokens) < 3 or len([piece for piece in pieces if piece]) > 1, "not all at the end"


def test_a_character_that_breaks_off_is_shown_as_broken():
    tokens = TOKENIZER.encode("ok 🙂", add_special_tokens=False)
    assert "".join(CHAT.pieces(tokens[:-1])) == "ok \ufffd"
