"""The endpoint: what the model says, in OpenAI's format, and what it does with requests that cannot be answered."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")
import httpx
import openai
import uvicorn
from fastapi.testclient import TestClient
from serve_helpers import Broken, Endless, Parrot, serving
from typer.testing import CliRunner

from whelp.cli import app as command_line
from whelp.conversation import Speaker
from whelp.engines import local
from whelp.engines.base import SamplingParams
from whelp.serve.answers import Answer, Model, speak
from whelp.serve.app import create_app
from whelp.serve.service import Service
from whelp.text.chat import Chat, end_ids
from whelp.types import Message, Prompt

HELLO = [{"role": "user", "content": "Hello there"}]
LIMIT = 24


@pytest.fixture(scope="module")
def speaker(tiny_model_folder, compute) -> Iterator[Speaker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "choose", lambda: compute)
        yield Speaker(str(tiny_model_folder()), SamplingParams(1, 0.0, LIMIT))


@pytest.fixture(scope="module")
def greedy(speaker) -> str:
    """What the model says to HELLO."""
    return "".join(speaker.answer([Message("user", "Hello there")]))


def client(*models: Model, limit: int = LIMIT, **options) -> TestClient:
    """Models called m, m2, ..."""
    named = {f"m{i}" if i > 1 else "m": model for i, model in enumerate(models, 1)}
    app = create_app(Service(named, limit), **options)
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


def ask(client: TestClient, **fields) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"model": "m", "messages": HELLO, "temperature": 0} | fields)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def events_of(answer: httpx.Response) -> list:
    """The payloads of a stream, "[DONE]" left as it is."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    payloads = [line.removeprefix("data: ") for line in lines]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


def streamed(answer: httpx.Response) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events_of(answer)[:-1])


# -- stop sequences ---------------------------------------------------------------------------------------------------


def cut_slowly(text: str, stops: list[str]) -> str:
    """Character by character: at the first stop sequence that is complete, the longest where several are."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))]
    return text


letters = st.text("ab é☃\n", min_size=1, max_size=4)


@given(st.lists(letters, max_size=12), st.lists(letters, max_size=4), st.integers(1, 60), st.booleans())
def test_a_stop_sequence_is_cut_off_and_never_shown_in_part(chat, pieces, stops, limit, is_ended):
    tokens = [token for piece in pieces for token in chat.tokenizer.encode(piece, add_special_tokens=False)]
    tokens = (tokens + [chat.tokenizer.eos_token_id] * is_ended)[:limit]
    answer = Answer(chat, frozenset(end_ids(chat.tokenizer)), max(len(tokens), 1), stops)
    expected = cut_slowly(chat.decode(tokens), stops)
    shown = ""
    for token in tokens:
        shown += answer.add(token)
        assert shown == answer.text and expected.startswith(shown)
        if answer.finish:
            break
    if tokens:
        assert shown == expected
        is_whole = expected == chat.decode(tokens) and tokens[-1] != chat.tokenizer.eos_token_id
        assert answer.finish == ("length" if is_whole else "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_across_tokens(speaker, greedy, stream):
    stop = next(greedy[i : i + 3] for i in range(4, len(greedy)) if greedy.find(greedy[i : i + 3]) == i)
    one = len(speaker.chat.tokenizer.encode(stop, add_special_tokens=False))
    assert one > 1, "else this proves nothing"
    answer = ask(client(speaker), stop=["never", stop], stream=stream)
    assert (streamed(answer) if stream else text_of(answer)) == greedy[: greedy.index(stop)]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_says(speaker, greedy):
    answer = ask(client(speaker)).json()
    (sampled,) = speaker.engine.sample(
        "model", [Prompt("x", (Message("user", "Hello there"),))], SamplingParams(1, 0.0, LIMIT)
    )
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": greedy, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop" if sampled.is_finished else "length",
        }
    ]
    rendered = speaker.chat.tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    read, said = len(rendered), len(sampled.tokens)
    assert answer["usage"] == {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    assert answer["id"].startswith("chatcmpl-") and isinstance(answer["created"], int)


def test_a_stream_has_openai_s_chunks(chat):
    answer = ask(client(Parrot(chat, "is é ☃\u2028.")), stream=True, stream_options={"include_usage": True})
    assert "\u2028" not in answer.text
    *chunks, last, done = events_of(answer)
    assert done == "[DONE]"
    first, *middle, end = chunks
    keys = {"id", "object", "created", "model", "choices", "usage"}
    assert {frozenset(chunk) for chunk in [*chunks, last]} == {frozenset(keys)}
    assert len({(chunk["id"], chunk["created"]) for chunk in [*chunks, last]}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [set(chunk["choices"][0]["delta"]) for chunk in middle] == [{"content"}] * len(middle)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "is é ☃\u2028."
    assert len(middle) > 4, "it comes in pieces"
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert {chunk["choices"][0]["finish_reason"] for chunk in [first, *middle]} == {None}
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert last["choices"] == []
    assert last["usage"] == ask(client(Parrot(chat, "is é ☃\u2028."))).json()["usage"]


def test_a_stream_without_usage_says_nothing_of_it(speaker, greedy):
    answer = ask(client(speaker), stream=True)
    assert streamed(answer) == greedy
    assert not any("usage" in chunk for chunk in events_of(answer)[:-1])


def test_several_answers_are_those_that_the_engine_samples(speaker):
    answer = ask(client(speaker), n=3, temperature=1, seed=7).json()
    params = SamplingParams(3, 1.0, LIMIT, ("serve", 7))
    sampled = speaker.engine.sample("model", [Prompt("chat", (Message("user", "Hello there"),))], params)
    expected = {one.sample: one for one in sampled}
    assert [choice["message"]["content"] for choice in answer["choices"]] == [expected[s].text for s in range(3)]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == sum(len(one.tokens) for one in expected.values())


def test_a_seed_fixes_the_answer_and_none_does_not(speaker):
    ours = client(speaker)
    said = [text_of(ask(ours, temperature=1, seed=seed)) for seed in (1, 1, 2, None, None)]
    assert said[0] == said[1]
    assert len(set(said)) == 4


def test_several_answers_end_each_for_itself(chat):
    choices = ask(client(Parrot(chat, "1.END 2", "x" * 40, "1")), n=3, stop="END").json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["1.", "x" * LIMIT, "1"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length", "stop"]


def test_nothing_is_drawn_after_the_last_answer_has_ended(chat):
    drawn = []

    class Counting(Parrot):
        def tokens(self, prompt, params):
            for token in super().tokens(prompt, params):
                drawn.append(token)
                yield token

    model = Counting(chat, "a.b.c.d")
    answer = Answer(chat, frozenset(), 99, (".",))
    list(speak(model, Prompt("x", (Message("user", "Hi"),)), SamplingParams(max_new_tokens=99), [answer]))
    assert (answer.text, len(drawn)) == ("a", 2)


@pytest.mark.parametrize(
    ("fields", "temperature", "limit"),
    [
        ({"temperature": None}, 1.0, LIMIT),
        ({}, 0.0, LIMIT),
        ({"temperature": 1e-45}, 0.0, LIMIT),
        ({"temperature": 0.7, "max_tokens": 3}, 0.7, 3),
        ({"max_completion_tokens": 60}, 0.0, 60),
        ({"max_tokens": None, "n": None, "stop": None, "stream": None, "seed": None}, 0.0, LIMIT),
    ],
)
def test_what_a_request_asks_of_the_sampler(chat, fields, temperature, limit):
    parrot = Parrot(chat, "Hi", context=100)
    text_of(ask(client(parrot), **fields))
    ((_, params),) = parrot.asked
    assert (params.n, params.temperature, params.max_new_tokens) == (1, temperature, limit)


def test_turns_and_parts_become_messages(chat):
    parrot = Parrot(chat, "Hi")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "Yes?", "refusal": None},
        {"role": "user", "content": ""},
    ]
    text_of(ask(client(parrot), messages=turns))
    ((prompt, _),) = parrot.asked
    expected = [("system", "Be brief."), ("user", "one\ntwo"), ("assistant", "Yes?"), ("user", "")]
    assert prompt.messages == tuple(Message(role, text) for role, text in expected)


def test_the_server_s_system_prompt_opens_conversations_that_have_none(chat):
    told = Chat(chat.tokenizer, "Be kind.")
    [with_ours, with_own] = [
        ask(client(Parrot(told, "Hi")), messages=[*own, *HELLO]).json()["usage"]["prompt_tokens"]
        for own in ([], [{"role": "system", "content": "Be kind."}])
    ]
    assert with_ours == with_own


def test_models_are_listed_and_chosen_by_name(chat):
    ours = client(Parrot(chat, "one"), Parrot(chat, "two"))
    listed = ours.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["m", "m2"]
    assert {model["object"] for model in listed["data"]} == {"model"}
    assert ours.get("/v1/models/m2").json() == listed["data"][1]
    assert [text_of(ask(ours, model=name)) for name in ("m2", "m")] == ["two", "one"]
    assert ours.get("/v1/models/x").status_code == 404
    assert ours.get("/health").json() == {"status": "ok"}


# -- what is refused --------------------------------------------------------------------------------------------------


def assert_refused(answer: httpx.Response, status: int, param: str | None, code: str | None, message: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert message in error["message"]


IMAGE = [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "array"),
        ({"messages": None}, "messages", "array"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "string"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages.1.role", "'user'"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "messages.0.content", "nothing but text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content", "part"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content", "part"),
        ({"model": 5}, "model", "string"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "0.5"}, "temperature", "number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "integer"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"n": 2, "stream": True}, "n", "a stream gives one answer"),
        ({"n": True}, "n", "integer"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"seed": "x"}, "seed", "integer"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop.0", "at least 1"),
        ({"stop": [1]}, "stop.0", "string"),
        ({"stop": "x" * 1001}, "stop.0", "at most 1000"),
        ({"stream_options": 1}, "stream_options", ""),
        ({"top_p": 0.9}, "top_p", "full distribution"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "full distribution"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "full distribution"),
        ({"logprobs": True}, "logprobs", "log-probabilities are not served"),
        ({"top_logprobs": 2}, "top_logprobs", "log-probabilities are not served"),
        ({"tools": [{"type": "function"}]}, "tools", "tools are not served"),
        ({"response_format": {"type": "json_object"}}, "response_format", "no fixed form"),
    ],
)
def test_what_cannot_be_answered_is_named(chat, fields, param, message):
    parrot = Parrot(chat, "Hi")
    assert_refused(ask(client(parrot), **fields), 400, param, None, message)
    assert parrot.asked == []


def test_an_unknown_model(chat):
    assert_refused(ask(client(Parrot(chat, "Hi")), model="x"), 404, "model", "model_not_found", "there is m.")


def test_what_changes_nothing_is_ignored(chat):
    harmless = {
        "top_p": 1.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "tools": None,
        "response_format": {"type": "text"},
        "user": "ann",
        "metadata": {"a": [1]},
        "generation_config": '{"do_sample": true}',
        "model_config": 1,
        "__class__": "x",
    }
    assert text_of(ask(client(Parrot(chat, "Hi")), **harmless)) == "Hi"


SURROGATE = b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}'
NOT_A_NUMBER = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}'
NO_REQUEST = [b"", b"{", b"[]", b"5", b"null", b'"m"', b"{}", b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize(
    ("path", "body"),
    [(path, body) for path in ("/v1/chat/completions", "/load_model") for body in NO_REQUEST]
    + [("/v1/chat/completions", SURROGATE), ("/v1/chat/completions", NOT_A_NUMBER)],
)
def test_a_body_that_is_no_request(chat, path, body):
    answer = client(Parrot(chat, "Hi")).post(path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_long(chat):
    ours = client(Parrot(chat, "Hi"))
    message = "A request has at most 1000000 bytes."
    assert_refused(ask(ours, user="x" * 10**6), 413, None, None, message)
    parts = (b" " * 10**5 for _ in range(11))  # of which nobody says how many come
    assert_refused(ours.post("/v1/chat/completions", content=parts), 413, None, None, message)
    assert text_of(ask(ours, user="x" * 10**5)) == "Hi"


def test_the_context_bounds_the_conversation_and_the_answer(chat):
    asked = len(chat.prompt(Prompt("x", (Message("user", "Hello there"),))))
    parrot = Parrot(chat, "a" * 200, context=asked + 10)
    ours = client(parrot)
    assert len(text_of(ask(ours))) == 10, "the usual answer has what room there is"
    assert len(text_of(ask(ours, max_tokens=10))) == 10
    code = "context_length_exceeded"
    assert_refused(ask(ours, max_tokens=11), 400, "max_tokens", code, f"has {asked} tokens, behind which there is room")
    long = [{"role": "user", "content": "Hello there" + "a" * 10}]
    assert_refused(ask(ours, messages=long), 400, "messages", code, f"the model's context {asked + 10}")
    assert_refused(ask(ours, messages=long, stream=True), 400, "messages", code, "no room")
    boundless = client(Parrot(chat, "a" * 200))
    assert_refused(ask(boundless, max_tokens=LIMIT + 1), 400, "max_tokens", code, f"an answer of {LIMIT};")


def test_a_conversation_that_the_template_refuses(chat, tiny_tokenizer):
    import copy

    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + str(
        tiny_tokenizer.chat_template
    )
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert_refused(ask(client(Parrot(Chat(strict), "Hi")), messages=messages), 400, "messages", None, "no system")


def test_addresses_that_are_not_there(chat):
    ours = client(Parrot(chat, "Hi"))
    assert_refused(ours.get("/"), 404, None, None, "GET /: Not Found")
    assert_refused(ours.get("/v1/chat/completions"), 405, None, None, "Method Not Allowed")
    assert ours.get("/docs").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_breaks_says_so_and_does_not_hold_up_the_next(chat, stream):
    ours = client(Broken(chat, "Hello"), Parrot(chat, "Hi"))
    answer = ask(ours, stream=stream)
    if stream:
        *_, last = events_of(answer)
    else:
        assert answer.status_code == 500
        last = answer.json()
    assert last["error"]["type"] == "server_error"
    assert "memory" not in answer.text
    assert text_of(ask(ours, model="m2")) == "Hi"


# -- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_this_machine_by_its_own_name(chat, host):
    assert client(Parrot(chat, "Hi")).get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "", "[", "[::1"])
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_foreign_name_is_refused(chat, host, path):
    answer = client(Parrot(chat, "Hi")).get(path, headers={"Host": host})
    assert_refused(answer, 421, None, None, "not called")
    anywhere = client(Parrot(chat, "Hi"), host_names=None, api_key="k")
    headers = {"Host": host, "Authorization": "Bearer k"}
    assert anywhere.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(chat, headers, status):
    parrot = Parrot(chat, "Hi")
    answer = client(parrot).post("/v1/chat/completions", json={"model": "m", "messages": HELLO}, headers=headers)
    assert answer.status_code == status
    assert len(parrot.asked) == (status == 200)
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("key", ["sesame", "schlüssel"])
def test_a_server_with_a_key(chat, key):
    parrot = Parrot(chat, "Hi")
    ours = client(parrot, api_key=key)
    wrong = ["", "Bearer", "Bearer sesam", f"Basic {key}", key, f"Bearer {key}x", "Bearer ß"]
    for path in ("/v1/chat/completions", "/load_model"):
        for authorization in wrong:
            answer = ours.post(path, content=b"{", headers={b"Authorization": authorization.encode()})
            assert_refused(answer, 401, None, "invalid_api_key", "asks for its key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert ours.get("/v1/models").status_code == 401
    assert ours.get("/health").status_code == 200
    known = {b"Authorization": f"Bearer {key}".encode()}
    body = {"model": "m", "messages": HELLO}
    assert text_of(ours.post("/v1/chat/completions", json=body, headers=known)) == "Hi"
    assert len(parrot.asked) == 1


# -- a server and its clients -----------------------------------------------------------------------------------------


def test_openai_s_own_client(speaker, greedy):
    with (
        serving(Service({"tiny": speaker}, LIMIT)) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as ours,
    ):
        assert [model.id for model in ours.models.list()] == ["tiny"]
        create = ours.chat.completions.create
        whole = create(model="tiny", messages=HELLO, temperature=0)
        assert whole.choices[0].message.content == greedy
        chunks = list(
            create(model="tiny", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True})
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == greedy
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        stop = greedy[5:7]
        stopped = create(model="tiny", messages=HELLO, temperature=0, stop=[stop]).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (greedy[: greedy.index(stop)], "stop")
        with pytest.raises(openai.NotFoundError, match="There is no model 'other'"):
            create(model="other", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="full distribution"):
            create(model="tiny", messages=HELLO, top_p=0.5)
        assert len(create(model="tiny", messages=HELLO, n=2, seed=1).choices) == 2


def test_transformers_own_chat(chat, monkeypatch):
    theirs = pytest.importorskip("transformers.cli.chat")
    typed, shown = iter(["Hello there", "!exit"]), []
    monkeypatch.setattr(theirs.RichInterface, "input", lambda self: next(typed))
    said = theirs.RichInterface.stream_output

    async def kept(self, stream):
        shown.append(await said(self, stream))
        return shown[-1]

    monkeypatch.setattr(theirs.RichInterface, "stream_output", kept)
    parrot = Parrot(chat, "Hi, you.")
    # In a thread: it starts an event loop, and browser tests leave one running in theirs.
    with serving(Service({"m": parrot}, LIMIT)) as (url, _), ThreadPoolExecutor(1) as thread:
        told = {"generate_flags": None, "system_prompt": "Be brief.", "generation_config": None}
        thread.submit(theirs.Chat, "m", url, **told).result(60)
    ((prompt, _),) = parrot.asked
    assert [message.content for message in prompt.messages] == ["Be brief.", "Hello there"]
    assert shown == [("Hi, you.", "stop")]


def test_a_client_that_leaves_stops_the_model_and_frees_it(chat):
    endless = Endless(chat)
    body = {"model": "endless", "messages": HELLO, "stream": True}
    with serving(Service({"endless": endless, "m": Parrot(chat, "Hi")}, 10**9)) as (url, _):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            endless.may.release(2)
            assert any('"content":"a"' in line for line in answer.iter_lines())
        endless.may.release(10**6)
        assert endless.closed.wait(10)
        assert text_of(httpx.post(f"{url}/v1/chat/completions", json=body | {"model": "m", "stream": False})) == "Hi"


def test_a_client_that_hangs_up_while_it_waits_for_the_whole_answer(chat):
    endless = Endless(chat)
    body = json.dumps({"model": "endless", "messages": HELLO}).encode()
    with serving(Service({"endless": endless}, 10**9)) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body)
            endless.may.release(3)
        endless.may.release(10**6)
        assert endless.closed.wait(10)


def test_a_slow_model_does_not_hold_up_the_rest_of_the_server(chat):
    endless = Endless(chat)
    body = {"model": "endless", "messages": HELLO, "stream": True}
    with (
        serving(Service({"endless": endless}, 2)) as (url, _),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        assert httpx.get(f"{url}/health").status_code == 200, "while the model is at its first token"
        endless.may.release(2)
        answer.read()
        assert streamed(answer) == "aa"


def test_requests_are_answered_one_after_the_other(chat):
    first, second = Endless(chat), Endless(chat)
    is_heard = threading.Event()
    body = {"messages": HELLO, "stream": True, "max_tokens": 2}
    second.may.release(2)

    def ask_second(path: str) -> str:
        with httpx.stream("POST", path, json=body | {"model": "second"}) as answer:
            is_heard.set()
            answer.read()
        return streamed(answer)

    with serving(Service({"first": first, "second": second}, 10**9)) as (url, _), ThreadPoolExecutor(1) as thread:
        path = f"{url}/v1/chat/completions"
        with httpx.stream("POST", path, json=body | {"model": "first", "max_tokens": 10**9}):
            later = thread.submit(ask_second, path)
            while not is_heard.wait(0.01):
                first.may.release()
            assert not second.is_asked.is_set()
        first.may.release(10**6)
        assert later.result(10) == "aa"


def test_a_server_that_is_stopped_ends_answers_in_the_middle(chat):
    endless = Endless(chat)
    body = {"model": "m", "messages": HELLO, "stream": True}
    with (
        serving(Service({"m": endless}, 10**9)) as (url, server),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        endless.may.release(2)
        lines = answer.iter_lines()
        assert any('"content":"a"' in line for line in lines)
        server.should_exit = True
        endless.may.release(10**6)
        *_, last = filter(None, lines)
    assert "The server is being stopped." in last
    assert endless.closed.wait(10)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch, tmp_path) -> list:
    """What the command would serve: (models, app, its configuration) of each call."""
    from whelp import conversation

    found: list = []

    class FakeSpeaker:
        def __init__(self, model, system_prompt):
            self.model, self.system_prompt = model, system_prompt

    class FakeServer:
        should_exit = False

        def __init__(self, config):
            found.append(config)

        def run(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "Speaker", FakeSpeaker)
    monkeypatch.setattr(uvicorn, "Server", FakeServer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHELP_API_KEY", raising=False)
    return found


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command_line, ["serve", *arguments], prog_name="whelp")
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_serves_models_by_name(started):
    options = ["--model", "a/ppo", "--model", "old=b/sft", "--max-new-tokens", "9", "--system_prompt", "Be kind."]
    shown = call(*options, "--port", "9000")
    assert "ppo, old at http://127.0.0.1:9000/v1 (Ctrl-C ends it)" in shown
    (config,) = started
    service: Service = config.app.state.service
    assert {name: model.model for name, model in service.models.items()} == {"ppo": "a/ppo", "old": "b/sft"}
    assert {model.system_prompt for model in service.models.values()} == {"Be kind."}
    assert (service.max_new_tokens, service.is_ending()) == (9, False)
    assert (config.host, config.port) == ("127.0.0.1", 9000)
    assert config.app.state.host_names == {"localhost", "127.0.0.1", "::1"}
    assert config.app.state.api_key is None


def test_without_a_model_it_is_that_of_the_default_run(started, tmp_path):
    assert "no model was given" in call(code=2)
    (tmp_path / "runs/assistant/ppo").mkdir(parents=True)
    call()
    assert {name: model.model for name, model in started[0].app.state.service.models.items()} == {
        "ppo": "runs/assistant/ppo"
    }


def test_other_machines_need_a_key(started, monkeypatch):
    assert "--host 0.0.0.0 lets other machines in" in call("--model", "m", "--host", "0.0.0.0", code=2)
    monkeypatch.setenv("WHELP_API_KEY", "")
    assert "set WHELP_API_KEY" in call("--model", "m", "--host", "192.168.0.5", code=2)
    assert started == []
    monkeypatch.setenv("WHELP_API_KEY", "sesame")
    call("--model", "m", "--host", "0.0.0.0")
    state = started[0].app.state
    assert (state.api_key, state.host_names) == ("sesame", None)


def test_without_the_extra_it_says_what_to_install(started, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "serving needs uvicorn: pip install 'whelp[web]'" in call("--model", "m", code=2)
