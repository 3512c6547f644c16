"""A model behind an address answers as an engine's models do."""

from __future__ import annotations

import math

import pytest
from serve_helpers import Parrot
from serve_helpers import serving as serving_models

from endpoint_server import Answer, json_of, refusal, said, serving, spoken
from whelp.addresses import Address, address_of, is_address
from whelp.endpoints.client import Endpoint
from whelp.endpoints.model import EndpointModel
from whelp.endpoints.replies import Replies
from whelp.engines.base import SamplingParams
from whelp.errors import ConfigError, ModelError
from whelp.serve.service import Service
from whelp.text.chat import Chat
from whelp.types import Message, Prompt

for library in ("openai", "anthropic"):
    pytest.importorskip(library, reason="pip install 'whelp[judge]'")

TWO = [Prompt(name, (Message("user", f"say {name}"),)) for name in ("one", "two")]


pytestmark = pytest.mark.usefixtures("no_keys")


def model(replies: Replies, chat: Chat, url: str, **more) -> EndpointModel:
    settings = {"attempts": 2, "back_off": 0.001, "timeout": 5.0, "concurrency": 2}
    return EndpointModel(Endpoint("tiny", replies, base_url=url, **settings | more), chat)


def test_answers_are_completions(replies: Replies, chat: Chat) -> None:
    kind = Chat(chat.tokenizer, system_prompt="Be kind.")

    def say(asked: str, number: int) -> Answer:
        return said("  the end \n") if "one" in asked else said("and so on", finish="length")

    with serving(say) as endpoint:
        asked = model(replies, kind, endpoint.url)
        found = sorted(
            asked.sample("m", TWO, SamplingParams(2, 0.7, 9, ("k", 3))), key=lambda c: (c.prompt.id, c.sample)
        )
        assert [(c.prompt.id, c.sample, c.text, c.is_finished) for c in found] == [
            ("one", 0, "the end", True),
            ("one", 1, "the end", True),
            ("two", 0, "and so on", False),
            ("two", 1, "and so on", False),
        ]
        body = endpoint.bodies[0]
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert (body["temperature"], body["max_tokens"]) == (0.7, 9)
        assert len(endpoint.bodies) == 4
        again = model(replies, kind, endpoint.url)
        assert len(list(again.sample("m", TWO, SamplingParams(2, 0.7, 9, ("k", 3))))) == 4
        assert len(endpoint.bodies) == 4, "what was answered is not asked again"
        list(again.sample("m", TWO, SamplingParams(1, 0.7, 9, ("k", 4))))
        assert len(endpoint.bodies) == 6, "another seed is another draw"
    ended = chat.decode(found[0].tokens)
    assert (ended, found[0].tokens[-1]) == ("the end", chat.tokenizer.eos_token_id)
    assert chat.decode(found[2].tokens) == "and so on"
    assert found[2].tokens[-1] != chat.tokenizer.eos_token_id, "it was cut off"
    assert all(math.isnan(value) for c in found for value in c.logprobs)
    assert [len(c.logprobs) for c in found] == [len(c.tokens) for c in found]


def test_what_is_not_answered_is_named_behind_the_rest(replies: Replies, chat: Chat) -> None:
    def say(asked: str, number: int) -> Answer:
        return said("fine") if "one" in asked else said("", finish="length")

    with serving(say) as endpoint:
        answers = model(replies, chat, endpoint.url).sample("m", TWO, SamplingParams())
        assert next(answers).text == "fine"
        with pytest.raises(ModelError, match=r"m: tiny at .* gave 1 of 2 answers in no form .* \(to two\)"):
            next(answers)
        endpoint.say = lambda *_: said("better")
        found = {c.prompt.id: c.text for c in model(replies, chat, endpoint.url).sample("m", TWO, SamplingParams())}
        assert found == {"one": "fine", "two": "better"}


def test_an_empty_answer_that_ended_is_one(replies: Replies, chat: Chat) -> None:
    with serving(lambda *_: said("")) as endpoint:
        [one] = model(replies, chat, endpoint.url).sample("m", TWO[:1], SamplingParams())
    assert (one.text, one.is_finished, len(one.tokens)) == ("", True, 1)


def test_a_model_that_the_endpoint_has_not(replies: Replies, chat: Chat) -> None:
    answer = refusal(404, "The model `tiny` does not exist")
    with serving(lambda *_: answer) as endpoint, pytest.raises(ModelError, match="will not answer as tiny"):
        list(model(replies, chat, endpoint.url).sample("m", TWO, SamplingParams()))


def test_anthropic_takes_the_system_text_apart(replies: Replies, chat: Chat) -> None:
    kind = Chat(chat.tokenizer, system_prompt="Be kind.")
    with serving(lambda *_: spoken({"type": "text", "text": "fine"})) as endpoint:
        asked = model(replies, kind, endpoint.url, provider="anthropic")
        [one] = asked.sample("m", TWO[:1], SamplingParams(1, 0.0, 9))
        [body] = endpoint.bodies
    assert one.text == "fine"
    assert (body["system"], [message["role"] for message in body["messages"]]) == ("Be kind.", ["user"])
    assert "temperature" not in body


def test_a_model_that_whelp_serves(replies: Replies, chat: Chat) -> None:
    with serving_models(Service({"tiny": Parrot(chat, "the end", "an end")}, 9)) as (url, _):
        answers = model(replies, chat, f"{url}/v1").sample("m", TWO[:1], SamplingParams(1, 0.0, 9))
        assert [(one.text, one.is_finished, chat.decode(one.tokens)) for one in answers] == [
            ("the end", True, "the end")
        ]


def test_the_reply_of_no_protocol(replies: Replies, chat: Chat) -> None:
    with serving(lambda *_: json_of({"answer": "fine"})) as endpoint, pytest.raises(ModelError, match="2 of 2 answers"):
        list(model(replies, chat, endpoint.url).sample("m", TWO, SamplingParams()))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai:gpt-4o", Address("openai", None, "gpt-4o")),
        ("anthropic:claude", Address("anthropic", None, "claude")),
        ("http://127.0.0.1:8000/v1#org/tiny", Address("openai", "http://127.0.0.1:8000/v1", "org/tiny")),
        ("https://a.example/v1#x", Address("openai", "https://a.example/v1", "x")),
    ],
)
def test_addresses(source: str, expected: Address) -> None:
    assert is_address(source)
    assert address_of(source) == expected
    assert str(expected) == source


@pytest.mark.parametrize(
    "source", ["openai/gpt2", "out/ppo", "./openai", "db:openai:x", "smollm2-135m-instruct", "x#y"]
)
def test_what_is_no_address(source: str) -> None:
    assert not is_address(source)


@pytest.mark.parametrize("source", ["openai:", "http://127.0.0.1:8000/v1", "https://a.example/v1#"])
def test_an_address_without_a_model(source: str) -> None:
    with pytest.raises(ConfigError, match="names no model"):
        address_of(source)
