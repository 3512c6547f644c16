"""A judge behind an address that cannot be trusted, and the replies that are kept."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate

import pytest
from sqlalchemy import text

from endpoint_server import FINE, LIKELY, NO_SENSE, Answer, json_of, listed, refusal, said, serving, spoken, with_odds
from whelp.endpoints.client import Endpoint, seconds_asked
from whelp.endpoints.replies import Kept, Replies, key_of
from whelp.errors import ConfigError, Interrupted, ModelError
from whelp.judges.base import Comparison, Opinion, labels
from whelp.judges.endpoint import EndpointJudge
from whelp.judges.letters import letter_of
from whelp.text.formats import read_principles
from whelp.types import Message

for library in ("openai", "anthropic"):
    pytest.importorskip(library, reason="pip install 'whelp[judge]'")

PRINCIPLE = read_principles("builtin:constitution")[0]
SECRET = "sk-very-secret"
LOG_8, LOG_2 = math.log(0.8), math.log(0.2)


def comparison(name: str, first: str = "yes", second: str = "no") -> Comparison:
    return Comparison(name, (Message("user", f"question {name}"),), first, second, PRINCIPLE)


THREE = [comparison(name) for name in ("one", "two", "three")]


pytestmark = pytest.mark.usefixtures("no_keys")


def judge(replies: Replies, url: str | None, **more) -> EndpointJudge:
    own = {name: more.pop(name) for name in ("is_thoughtful", "votes", "max_tokens") if name in more}
    settings = {"attempts": 3, "back_off": 0.001, "timeout": 5.0, "concurrency": 2}
    return EndpointJudge(Endpoint("tiny", replies, base_url=url, **settings | more), **own)


def firsts(judge: EndpointJudge, comparisons: list[Comparison] = THREE) -> list[float | None]:
    heard = dict(judge.opinions(comparisons))
    return [opinion and opinion.first for opinion in (heard[place] for place in range(len(comparisons)))]


# -- what is read -----------------------------------------------------------------------------------------------------


def test_the_probability_of_a_is_summed_over_its_spellings(replies: Replies) -> None:
    top = [(" A", 0.5), ("A", 0.1), ("(A", 0.04), ("a", 0.01), ("B", 0.2), ("b", 0.02), ("C", 0.1), ("Answer", 0.02)]
    answer = said("A", listed(*[(token, math.log(p)) for token, p in top]))
    with serving(lambda *_: answer) as endpoint:
        assert firsts(judge(replies, endpoint.url), THREE[:1]) == [pytest.approx(0.65 / 0.87)]
        [body] = endpoint.bodies
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([("A", -900.0), ("B", -901.0)], 1 / (1 + math.exp(-1))),
        ([("A", 0.0), ("the", -9999.0)], 1.0),
        ([("B", -0.5)], 0.0),
        ([("ĠA", LOG_2), ("▁B", LOG_8)], 0.2),
    ],
)
def test_probabilities_at_the_edge(top, expected: float, replies: Replies) -> None:
    with serving(lambda *_: said("A", listed(*top))) as endpoint:
        assert firsts(judge(replies, endpoint.url), THREE[:1]) == [pytest.approx(expected)]


@pytest.mark.parametrize("dress", ["{}", " {} ", "({})", "**{}**", "{}.", "Answer: {}", "The answer is ({}).", "`{}`"])
def test_a_letter_in_any_dress(dress: str) -> None:
    assert [letter_of(dress.format(letter)) for letter in "AaBb"] == ["A", "A", "B", "B"]


@pytest.mark.parametrize("line", ["", "C", "AB", "A or B", "neither", "(A) or (B)", "Apple", "*" * 100_000 + "A", "1"])
def test_what_names_no_letter(line: str) -> None:
    assert letter_of(line) is None


def test_votes_where_log_probabilities_are_refused(replies: Replies) -> None:
    votes = ["A", "(a)", "**B**", "B.", " A\n\nIt is better."]

    def say(_: str, number: int) -> Answer:
        return refusal(400, "This model does not give logprobs.") if number == 0 else said(votes[number - 1])

    with serving(say) as endpoint:
        asked = judge(replies, endpoint.url, concurrency=1)
        assert not asked.is_voting
        [(_, opinion)] = asked.opinions(THREE[:1])
        assert asked.is_voting
        assert opinion == Opinion(0.6)
        assert [body.get("logprobs") for body in endpoint.bodies] == [True, *[None] * 5]
        assert {body["temperature"] for body in endpoint.bodies} == {1.0}
        again = judge(replies, endpoint.url)
        assert firsts(again, THREE[:1]) == [0.6]
        assert len(endpoint.bodies) == 6, "a second run asks nothing"


@pytest.mark.parametrize("given", [None, {"content": None}, {"content": []}, {"content": [{"token": "A"}]}, listed()])
def test_votes_where_log_probabilities_are_not_given(given, replies: Replies) -> None:
    with serving(lambda *_: said("B", given)) as endpoint:
        assert firsts(judge(replies, endpoint.url, votes=2, concurrency=1)) == [0.0, 0.0, 0.0]
        assert len(endpoint.bodies) == 1 + 3 * 2, "it is asked for them once"


def test_labels_of_both_kinds_lie_apart(replies: Replies) -> None:
    with serving(lambda *_: said("A")) as endpoint:
        assert firsts(judge(replies, endpoint.url), THREE[:1]) == [1.0]
        count = len(endpoint.bodies)
        endpoint.say = lambda *_: FINE
        assert firsts(judge(replies, endpoint.url), THREE[:2]) == [1.0, pytest.approx(0.8)]
        assert len(endpoint.bodies) == count + 1


def test_a_chain_of_thought_is_kept(replies: Replies) -> None:
    thoughts = ["The first is kind.\n\n(A)\n", "Hm.\nAnswer: B", "A\nis worse than\nB", "So:\n**A**"]
    with serving(lambda _, number: said(thoughts[number])) as endpoint:
        asked = judge(replies, endpoint.url, is_thoughtful=True, votes=4, concurrency=1)
        assert asked.is_voting
        [(_, opinion)] = asked.opinions(THREE[:1])
        assert opinion == Opinion(0.5, thoughts[0])
        assert "step by step" in endpoint.bodies[0]["messages"][0]["content"]


def test_a_thought_that_is_cut_off_is_asked_again(replies: Replies) -> None:
    cut = said("I compare A and\nB", finish="length")
    with serving(lambda _, number: [cut, said("So\nA")][number]) as endpoint:
        assert firsts(judge(replies, endpoint.url, is_thoughtful=True, votes=1), THREE[:1]) == [1.0]


def test_position_bias_cancels(replies: Replies) -> None:
    with serving(lambda *_: with_odds(0.9)) as endpoint:
        found = dict(labels(judge(replies, endpoint.url), THREE))
    assert sorted(found) == [0, 1, 2]
    assert all(one.first == pytest.approx(0.5) and one.position_bias == pytest.approx(0.4) for one in found.values())


def test_models_that_think_by_themselves(replies: Replies) -> None:
    def say(_: str, number: int) -> Answer:
        body = endpoint.bodies[-1]
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'.")
        if "temperature" in body:
            return refusal(400, "Unsupported value: 'temperature' does not support it.")
        return refusal(400, "You are not allowed to request logprobs.") if "logprobs" in body else said("A")

    with serving(say) as endpoint:
        assert firsts(judge(replies, endpoint.url, votes=2, concurrency=1), THREE[:2]) == [1.0, 1.0]
        assert len(endpoint.bodies) == 3 + 4


# -- Anthropic --------------------------------------------------------------------------------------------------------


def test_anthropic_is_asked_by_votes(replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    answers = [
        refusal(529, "Overloaded"),
        json_of({"type": "message", "content": [{"type": "text", "text": None}]}),
        spoken({"type": "thinking", "thinking": "B"}, {"type": "text", "text": "(A"}, {"type": "text", "text": ")"}),
        spoken({"type": "text", "text": "B"}),
    ]
    with serving(lambda _, number: answers[number]) as endpoint:
        url = endpoint.url.removesuffix("/v1")
        asked = judge(replies, url, provider="anthropic", votes=2, price_in=3.0, price_out=15.0)
        [(_, opinion)] = asked.opinions(THREE[:1])
        assert opinion.first == 0.5
        assert opinion.cost == pytest.approx(2 * (100 * 3 + 10 * 15) / 1e6)
        assert set(endpoint.paths) == {"/v1/messages"}
        assert SECRET in str(endpoint.headers[0])
        assert set(endpoint.bodies[0]) == {"model", "messages", "max_tokens"}
        assert firsts(judge(replies, url, provider="anthropic", votes=2), THREE[:1]) == [0.5]
        assert len(endpoint.bodies) == 4


# -- an endpoint that misbehaves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", NO_SENSE.values(), ids=NO_SENSE)
def test_what_cannot_be_read_costs_one_comparison(answer: Answer, replies: Replies) -> None:
    with serving(lambda name, _: answer if name == "two" else FINE) as endpoint:
        assert firsts(judge(replies, endpoint.url)) == [pytest.approx(0.8), None, pytest.approx(0.8)]
        assert endpoint.asked == {"one": 1, "two": 3, "three": 1}
        endpoint.say = lambda *_: FINE
        assert firsts(judge(replies, endpoint.url)) == [pytest.approx(0.8)] * 3
        assert endpoint.asked == {"one": 1, "two": 4, "three": 1}, "only what was not answered"
        assert firsts(judge(replies, endpoint.url)) == [pytest.approx(0.8)] * 3
        assert endpoint.asked.total() == 6


@pytest.mark.parametrize("answer", [Answer(does_hang=True), Answer(b"{", does_drip=True), refusal(500, "no")])
def test_what_is_slow_or_broken_once_is_asked_again(answer: Answer, replies: Replies) -> None:
    with serving(lambda name, number: answer if (name, number) == ("two", 0) else FINE) as endpoint:
        assert firsts(judge(replies, endpoint.url, timeout=0.25)) == [pytest.approx(0.8)] * 3
        assert endpoint.asked["two"] >= 2


def test_an_error_without_end_ends(replies: Replies) -> None:
    endless = Answer(b"x", 500, does_drip=True)
    with serving(lambda _, number: endless if number == 0 else FINE) as endpoint:
        assert firsts(judge(replies, endpoint.url, timeout=0.25), THREE[:1]) == [pytest.approx(0.8)]


def test_who_asks_to_wait_is_waited_for(replies: Replies) -> None:
    limit, times = replace(refusal(429, "slow down"), headers={"Retry-After": "0.06"}), []

    def say(_: str, number: int) -> Answer:
        times.append(time.monotonic())
        return limit if number == 0 else FINE

    with serving(say) as endpoint:
        assert firsts(judge(replies, endpoint.url), THREE[:1]) == [pytest.approx(0.8)]
    assert times[1] - times[0] >= 0.06


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_a_wait_of_no_sense_is_none(value: str) -> None:
    assert seconds_asked({"retry-after": value}) == 0.0
    assert 50 < seconds_asked({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_comparison_that_is_refused_is_asked_once(status: int, replies: Replies) -> None:
    long = refusal(status, "This model's maximum context length is 4096 tokens.")
    with serving(lambda name, _: long if name == "two" else FINE) as endpoint:
        for count in (1, 2):
            assert firsts(judge(replies, endpoint.url)) == [pytest.approx(0.8), None, pytest.approx(0.8)]
            assert endpoint.asked == {"one": 1, "two": count, "three": 1}
        with pytest.raises(ModelError, match="maximum context length"):
            firsts(judge(replies, endpoint.url), [comparison("two")])


REFUSALS = {
    "401": (refusal(401, f"Incorrect API key provided: {SECRET}\x1b[31m"), ConfigError, "Set OPENAI_API_KEY"),
    "403": (refusal(403, "no"), ConfigError, "refuses the key"),
    "404": (refusal(404, "The model `tiny` does not exist"), ModelError, "does not exist"),
    "400 of the model": (refusal(400, "wrong", param="model"), ModelError, "model's name"),
    "400 by its words": (refusal(400, "invalid model name"), ModelError, "invalid model name"),
    "no money": (refusal(429, "You exceeded it", code="insufficient_quota"), ModelError, "the account"),
    "elsewhere": (Answer(status=307, headers={"Location": "http://example.invalid/"}), ModelError, "address"),
}


@pytest.mark.parametrize(("answer", "error", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_get_better_stops(answer, error, words, replies: Replies, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    heard = []
    with serving(lambda name, _: answer if name == "two" else FINE) as endpoint:
        with pytest.raises(error, match=words) as caught:
            heard.extend(judge(replies, endpoint.url, concurrency=1).opinions(THREE))
        assert endpoint.url in str(caught.value)
        assert SECRET not in str(caught.value) and "\x1b" not in str(caught.value)
        assert heard[0][0] == 0, "what was answered is handed out"
        assert endpoint.asked["two"] == 1
        endpoint.say = lambda *_: FINE
        assert firsts(judge(replies, endpoint.url)) == [pytest.approx(0.8)] * 3
        assert endpoint.asked["one"] == 1


def test_nobody_at_the_address(replies: Replies) -> None:
    with serving(lambda *_: FINE) as endpoint:
        url = endpoint.url
    with pytest.raises(ModelError, match="nobody answers at http://127"):
        firsts(judge(replies, url))


def test_usage_that_cannot_be_believed_is_the_most_it_can_be(replies: Replies) -> None:
    for number, usage in enumerate([None, "x", [], {"prompt_tokens": -1}, {"prompt_tokens": True}, {}]):
        one = comparison(f"n{number}")
        with serving(lambda *_, u=usage: said("A", LIKELY, u)) as endpoint:
            [(_, opinion)] = judge(replies, endpoint.url, price_in=1e6, price_out=1e6).opinions([one])
            longest = len(endpoint.bodies[0]["messages"][0]["content"].encode())
        assert longest < opinion.cost <= longest + 100


# -- limits -----------------------------------------------------------------------------------------------------------


def test_no_more_are_asked_at_once_than_may_be(replies: Replies) -> None:
    gate = threading.Barrier(3)

    def say(*_: object) -> Answer:
        gate.wait(5)  # three are there at once, or this fails
        time.sleep(0.01)  # a fourth would be seen
        return FINE

    with serving(say) as endpoint:
        many = [comparison(f"n{i}") for i in range(12)]
        assert firsts(judge(replies, endpoint.url, concurrency=3), many) == [pytest.approx(0.8)] * 12
        assert endpoint.most == 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_limit_of_cost_is_not_passed(concurrency: int, replies: Replies) -> None:
    each = 110.0  # 100 tokens are read and 10 written
    most = each * 5 + 2500  # the next may cost about 700
    many = [comparison(f"n{i}") for i in range(40)]
    prices = {"price_in": 1e6, "price_out": 1e6, "concurrency": concurrency}
    heard = []
    with serving(lambda *_: FINE) as endpoint:
        with pytest.raises(Interrupted, match=r"raise max_cost and run the same again") as caught:
            heard.extend(judge(replies, endpoint.url, max_cost=most, **prices).opinions(many))
        count = len(endpoint.bodies)
        assert len(heard) == count, "what was paid for is handed out"
        assert each * count <= most
        assert f"{each * count:.4f}" in str(caught.value)
        assert count >= 15, "what is under way is waited for before it stops"
        with pytest.raises(Interrupted):
            heard = list(judge(replies, endpoint.url, max_cost=most, **prices).opinions(many))
        assert len(endpoint.bodies) == count, "the limit holds over runs"
        assert (
            firsts(judge(replies, endpoint.url, max_cost=each * 40 + 5000, **prices), many) == [pytest.approx(0.8)] * 40
        )
        assert len(endpoint.bodies) == 40


def test_what_is_under_way_counts_at_its_most(replies: Replies) -> None:
    def say(*_: object) -> Answer:
        time.sleep(0.02)  # others could begin meanwhile
        return said("A", LIKELY, None)

    many = [comparison(f"n{i}") for i in range(4)]
    prices = {"price_in": 1e6, "price_out": 1e6, "concurrency": 4}
    with serving(say) as endpoint:
        [(_, opinion)] = judge(replies, endpoint.url, **prices).opinions(THREE[:1])
        with pytest.raises(Interrupted):
            firsts(judge(replies, endpoint.url, max_cost=2.5 * opinion.cost, **prices), many)
        assert len(endpoint.bodies) == 1 + 2


def test_what_cannot_be_read_is_paid_for_as_well(replies: Replies) -> None:
    with serving(lambda *_: said("C", listed(("C", LOG_8)))) as endpoint:
        asked = judge(replies, endpoint.url, price_in=1e6, price_out=1e6)
        assert firsts(asked, THREE[:1]) == [None]
        assert asked.endpoint.ledger.spent == 3 * 110


def test_stopped_half_way_nothing_is_repeated(replies: Replies) -> None:
    many = [comparison(f"n{i}") for i in range(30)]

    def consume(asked: EndpointJudge) -> None:
        for number, _ in enumerate(asked.opinions(many)):
            if number == 3:
                raise KeyboardInterrupt

    def say(*_: object) -> Answer:
        time.sleep(0.005)
        return FINE

    with serving(say) as endpoint:
        with pytest.raises(KeyboardInterrupt):
            consume(judge(replies, endpoint.url))
        assert len(endpoint.bodies) < 30, "what had not begun is left"
        assert firsts(judge(replies, endpoint.url), many) == [pytest.approx(0.8)] * 30
        assert set(endpoint.asked.values()) == {1}


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_vendors_own_address_wants_a_key(provider, replies: Replies) -> None:
    with pytest.raises(ConfigError, match=f"set {provider.upper()}_API_KEY"):
        firsts(judge(replies, None, provider=provider))


def test_a_key_is_sent_and_never_kept(replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    with serving(lambda *_: FINE) as endpoint:
        firsts(judge(replies, endpoint.url), THREE[:1])
        assert {name.lower(): v for name, v in endpoint.headers[0].items()}["authorization"] == f"Bearer {SECRET}"
    with replies.engine.connect() as connection:
        assert SECRET not in str(connection.execute(text("SELECT * FROM replies")).all())
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\N{EN DASH}")
    with pytest.raises(ConfigError, match="no key has"):
        firsts(judge(replies, endpoint.url), THREE[1:])


def test_a_library_that_is_missing_is_named(replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'whelp\[judge\]'"):
        firsts(judge(replies, "http://127.0.0.1:1/v1"))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://me:pass@x/v1", "http://x?key=sk", "http://"])
def test_settings_that_cannot_be_meant(url: str, replies: Replies) -> None:
    with pytest.raises(ConfigError, match="expected http") as caught:
        judge(replies, url)
    assert "pass" not in str(caught.value).replace("password", "")
    with pytest.raises(ConfigError, match="price_in and price_out are 0"):
        judge(replies, "http://x/v1", max_cost=1.0)


def other_judge(plain: EndpointJudge, **changes: object) -> EndpointJudge:
    own = {name: changes.pop(name) for name in ("is_thoughtful", "votes", "max_tokens") if name in changes}
    return replace(plain, endpoint=replace(plain.endpoint, **changes), **own)


def test_keys_differ_where_anything_that_matters_does(replies: Replies) -> None:
    plain = judge(replies, "http://x/v1", votes=1)
    changes = [{"model": "other"}, {"base_url": "http://y/v1"}, {"provider": "anthropic"}]
    changes += [{"is_thoughtful": True}, {"is_thoughtful": True, "max_tokens": 9}]
    one, other = THREE[:2]
    asked = [other_judge(plain, **change).several(one)[0] for change in ({}, *changes)] + plain.single(one)
    asked += [plain.several(other)[0], plain.several(one.swapped())[0], replace(plain, votes=2).several(one)[1]]
    assert len({key_of(request) for request in asked}) == len(asked) == 10
    for same in ({"votes": 3}, {"base_url": "http://x/v1/"}, {"timeout": 1.0, "price_in": 5.0, "attempts": 9}):
        assert other_judge(plain, **same).several(one)[0] == plain.several(one)[0]
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})


# -- the replies that are kept, on SQLite and PostgreSQL --------------------------------------------------------------


def test_a_second_reply_to_one_request_is_dropped(database: str) -> None:
    request = {"model": "tiny", "vote": 0}
    one, other = Replies(database), Replies(database)
    assert one.get([key_of(request)]) == {}
    assert one.put(request, Kept({"first": 1.0}, 3, 4, 0.5)) == Kept({"first": 1.0}, 3, 4, 0.5)
    assert other.put(request, Kept({"first": 0.0}, 1, 1, 0.1)) == Kept({"first": 1.0}, 3, 4, 0.5)
    many = [key_of(request), *(key_of({"vote": i}) for i in range(1200))]
    assert list(other.get(many)) == [key_of(request)]
    one.close()
    other.close()


def test_many_threads_keep_the_same(database: str) -> None:
    kept = [Replies(database), Replies(database)]

    def work(number: int) -> list[Kept]:
        mine = Kept({"first": float(number)}, 1, 1, 0.0)
        return [kept[number % 2].put({"model": "tiny", "vote": vote}, mine) for vote in range(15)]

    with ThreadPoolExecutor(6) as pool:
        first, *rest = pool.map(work, range(6))
    assert all(one == first for one in rest), "whoever comes first is heard by all"
    for one in kept:
        one.close()


def test_text_that_no_database_holds(database: str) -> None:
    replies = Replies(database)
    odd = Comparison("c", (Message("user", "question odd\x00\ud800"),), "\udfffyes\x00", "no", PRINCIPLE)
    raw = json.dumps({"choices": [{"message": {"content": "So \x00 it \ud83d is\nA"}}]}).encode()
    with serving(lambda *_: Answer(raw)) as endpoint:
        for _ in range(2):
            [(_, opinion)] = judge(replies, endpoint.url, is_thoughtful=True, votes=1).opinions([odd])
            assert (opinion.first, opinion.reasoning) == (1.0, "So  it  is\nA")
        assert len(endpoint.bodies) == 1
    replies.close()
