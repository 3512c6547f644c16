"""A judge behind an address that speaks OpenAI's protocol, or Anthropic's.

What an endpoint says is not trusted: it is bounded in bytes and in time, and what cannot be read is asked again. What can be
read is kept in the database before anything is made of it, so that nothing is paid for twice, however a run ends.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from statistics import fmean
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from whelp.errors import ConfigError, Interrupted, ModelError
from whelp.judges.asking import choice, thoughtful_choice
from whelp.judges.base import Comparison, Opinion
from whelp.judges.replies import Kept, NoLogprobs, Replies, Request, Unread, key_of, parsed, read, usage, whole_text

Provider = Literal["openai", "anthropic"]
VENDORS: dict[Provider, str] = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
KEYS: dict[Provider, str] = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}

LETTER_TOKENS, ALTERNATIVES, OVERHEAD_TOKENS = 8, 20, 64
LARGEST_REPLY, LONGEST_QUOTE = 2**18, 300
LONGEST_WAIT = 120.0
PASSING = (408, 409, 425, 429)
"""Client errors that may be gone a moment later; so may those of the server be."""
UNSUPPORTED = re.compile(r"unsupported \w+: '(max_tokens|temperature)'", re.I)
"""Models that think by themselves take neither."""
NO_SUCH_MODEL = re.compile(
    r"(unknown|invalid|no such|unsupported) model|model\b.{0,80}(not exist|not found|unknown)", re.I
)


class Unreachable(Unread):
    """Nobody listens at the address."""


class Stopped(Exception):
    """Nothing more is to be asked."""


class Ledger:
    """What a judge has spent over all its calls, and what is known of its endpoint. Shared by its threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.spent = 0.0
        self.counted: set[str] = set()
        self.pending: dict[int, float] = {}
        """The most that each thread's request may cost."""
        self.refused: set[str] = set()
        """Parameters that the endpoint does not take."""

    def count(self, key: str, cost: float) -> None:
        """A reply that was kept: it is paid, by this run or by one before."""
        with self.changed:
            self.spent += cost * (key not in self.counted)
            self.counted.add(key)

    def reserve(self, most: float, limit: float | None, stop: threading.Event) -> bool:
        """Wait until a request that costs `most` fits the limit whatever those under way cost; False where it never will."""
        with self.changed:
            while not stop.is_set():
                if limit is None or self.spent + sum(self.pending.values()) + most <= limit:
                    self.pending[threading.get_ident()] = most
                    return True
                if not self.pending:
                    return False
                self.changed.wait()
        raise Stopped

    def settle(self, key: str, cost: float) -> None:
        with self.changed:
            del self.pending[threading.get_ident()]
            self.spent += cost
            self.counted.add(key)
            self.changed.notify_all()


@dataclass(frozen=True)
class EndpointJudge:
    """A language model behind an address, asked which of two answers is better, A or B.

    By its log-probabilities of the letter, where the endpoint gives them; else, and of a chain of thought, by the share of A
    among `votes` replies. The limit `max_cost` holds for the judge's whole life, with what earlier runs have paid for the same
    replies.
    """

    model: str
    replies: Replies
    provider: Provider = "openai"
    base_url: str | None = None
    """None: the vendor's own."""
    is_thoughtful: bool = False
    votes: int = 5
    max_tokens: int = 1024
    """Longest chain of thought."""
    concurrency: int = 8
    attempts: int = 5
    timeout: float = 120.0
    """Seconds."""
    back_off: float = 0.5
    """Seconds before the second attempt; twice as many before each that follows."""
    price_in: float = 0.0
    """Of a million tokens."""
    price_out: float = 0.0
    max_cost: float | None = None
    ledger: Ledger = field(default_factory=Ledger, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^@?#\s]+", self.url):
            raise ConfigError(
                f"the address of {self.model} begins with {self.url[:8]!r}...; expected http:// or https://, a host and a path, "
                f"without a password or a question mark: a key stands in {KEYS[self.provider]}."
            )
        if self.max_cost is not None and not self.price_in + self.price_out:
            raise ConfigError(
                f"max_cost is {self.max_cost}, but price_in and price_out are 0, so that nothing ever costs anything; set "
                f"the prices of a million tokens of {self.model}, or no limit."
            )

    @property
    def url(self) -> str:
        return (self.base_url or VENDORS[self.provider]).rstrip("/")

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.url).netloc}, {'thought' if self.is_thoughtful else 'choice'}"

    @property
    def is_voting(self) -> bool:
        """Whether its probabilities are shares of votes, by all that is known: an endpoint that gives no log-probabilities is
        known by its first reply."""
        return self.is_thoughtful or self.provider == "anthropic" or "logprobs" in self.ledger.refused

    def ready(self) -> None:
        """Raises `ConfigError` where the key or the library is missing; nobody is asked."""
        with Line(self):
            pass

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        """First what was answered before, then the rest as it comes.

        Raises `Interrupted` at the limit of cost, and `ConfigError` or `ModelError` where the endpoint will not answer: behind
        all that was answered, which is kept.
        """
        missing = []
        for place, comparison in enumerate(comparisons):
            if (opinion := self._kept(comparison)) is None:
                missing.append(place)
            else:
                yield place, opinion
        if missing:
            yield from self._asked(comparisons, missing)

    def _asked(self, comparisons: Sequence[Comparison], places: Sequence[int]) -> Iterator[tuple[int, Opinion | None]]:
        failure, is_heard = None, len(places) < len(comparisons)
        with Line(self) as line, ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(line.opinion, comparisons[place]): place for place in places}
            try:
                for future in as_completed(futures):
                    if (error := future.exception()) is None:
                        is_heard |= future.result() is not None
                        yield futures[future], future.result()
                    elif not isinstance(error, Stopped):
                        failure = failure or error
                        line.stop.set()
            finally:
                line.stop.set()
        if failure is not None:
            raise failure
        if line.refusal and not is_heard:
            raise ModelError(f"{self.url} refuses all that {self.model} is asked: {line.refusal}")

    def _kept(self, comparison: Comparison) -> Opinion | None:
        """What was answered before, by log-probabilities or by votes."""
        for requests in (self.single(comparison), self.several(comparison)):
            keys = [key_of(request) for request in requests]
            found = self.replies.get(keys)
            if keys and len(found) == len(keys):
                for key in keys:
                    self.ledger.count(key, found[key].cost)
                return self.opinion([found[key] for key in keys])
        return None

    def single(self, comparison: Comparison) -> list[Request]:
        """How log-probabilities are asked for."""
        can = self.provider == "openai" and not self.is_thoughtful
        return [self._request(choice(comparison), 1, True, 0)] if can else []

    def several(self, comparison: Comparison) -> list[Request]:
        """How votes are asked for."""
        question = thoughtful_choice(comparison) if self.is_thoughtful else choice(comparison)
        longest = self.max_tokens if self.is_thoughtful else LETTER_TOKENS
        return [self._request(question, longest, False, vote) for vote in range(self.votes)]

    def _request(self, question: str, max_tokens: int, has_logprobs: bool, vote: int) -> Request:
        return {
            "provider": self.provider,
            "base_url": self.url,
            "model": self.model,
            "messages": [{"role": "user", "content": whole_text(question)}],
            "max_tokens": max_tokens,
            "temperature": 1.0,
            "logprobs": has_logprobs,
            "vote": vote,
        }

    def opinion(self, kept: Sequence[Kept]) -> Opinion:
        reasoning = kept[0].reply["text"] if self.is_thoughtful else ""
        return Opinion(fmean(one.reply["first"] for one in kept), reasoning, math.fsum(one.cost for one in kept))


class Line:
    """A connection to the endpoint of a judge, for as long as it is asked."""

    def __init__(self, judge: EndpointJudge):
        self.judge, self.stop, self.refusal = judge, threading.Event(), ""
        self.key = _api_key(judge)
        try:
            self.library: Any = importlib.import_module(judge.provider)
        except ImportError as error:
            raise ConfigError("a judge behind an address needs a library: pip install 'whelp[judge]'") from error
        http = self.library.DefaultHttpxClient(
            timeout=judge.timeout,
            follow_redirects=False,  # the key is for this address
            event_hooks={"response": [partial(_bound, seconds=judge.timeout)]},
        )
        client = self.library.OpenAI if judge.provider == "openai" else self.library.Anthropic
        self.client = client(
            api_key=self.key or "none",
            base_url=judge.url,
            timeout=judge.timeout,
            max_retries=0,  # malformed replies are retried here, and so is the rest
            default_headers={"Accept-Encoding": "identity"},
            http_client=http,
        )
        resource = self.client.chat.completions if judge.provider == "openai" else self.client.messages
        self.create = resource.with_raw_response.create

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def opinion(self, comparison: Comparison) -> Opinion | None:
        judge = self.judge
        try:
            if not judge.is_voting:
                try:
                    return judge.opinion([self.answer(request) for request in judge.single(comparison)])
                except NoLogprobs:
                    judge.ledger.refused.add("logprobs")
            return judge.opinion([self.answer(request) for request in judge.several(comparison)])
        except Unread as error:
            if error.is_final:
                self.refusal = str(error)
            return None

    def answer(self, request: Request) -> Kept:
        """From the database, or from the endpoint in so many attempts."""
        judge, key = self.judge, key_of(request)
        if found := judge.replies.get([key]):
            judge.ledger.count(key, found[key].cost)
            return found[key]
        for attempt in range(1, judge.attempts + 1):
            try:
                return judge.replies.put(request, self.send(key, request))
            except Unread as error:
                if error.is_final or (attempt == judge.attempts and not isinstance(error, Unreachable)):
                    raise
                reason, after = error, error.after
            if attempt < judge.attempts:
                back_off = judge.back_off * 2 ** (attempt - 1) * random.uniform(0.75, 1.0)
                self.stop.wait(min(max(back_off, after), LONGEST_WAIT))
        raise ModelError(
            f"nobody answers at {judge.url} ({reason}). Start the server, or correct the address, and run the same again: what "
            "was answered is kept."
        )

    def send(self, key: str, request: Request) -> Kept:
        judge = self.judge
        size = len(request["messages"][0]["content"].encode()) + OVERHEAD_TOKENS  # no token is shorter than a byte
        cost = most = judge.cost(size, request["max_tokens"])
        if not judge.ledger.reserve(most, judge.max_cost, self.stop):
            raise Interrupted(
                f"{judge.name} has cost {judge.ledger.spent:.4f}, and the next request could pass max_cost, which is "
                f"{judge.max_cost}. All that it said is kept in the database; raise max_cost and run the same again: only the "
                "rest is asked."
            )
        try:
            payload = parsed(self.post(request))
            tokens = usage(payload, size, request["max_tokens"])
            cost = judge.cost(*tokens)
            return Kept(read(payload, request, judge.is_thoughtful), *tokens, cost)
        except (Unread, NoLogprobs) as error:
            cost = 0.0 if error.is_free else cost
            raise
        except (ConfigError, ModelError):
            cost = 0.0
            raise
        finally:
            judge.ledger.settle(key, cost)

    def post(self, request: Request) -> bytes:
        try:
            return self.create(**_body(request, self.judge.ledger.refused)).http_response.content
        except self.library.APIStatusError as error:
            raise self._refusal(error, request) from error
        except self.library.APIConnectionError as error:
            reason = self._quoted(str(error.__cause__ or error))
            if type(error.__cause__).__name__ == "ConnectError":
                raise Unreachable(reason, is_free=True) from error
            raise Unread(reason) from error
        except self.library.APIError as error:
            raise Unread(self._quoted(str(error))) from error

    def _refusal(self, error: Any, request: Request) -> Exception:
        """What an error's status means."""
        judge, status, said = self.judge, error.status_code, _message(error)
        quoted = f"{status}: {self._quoted(said)}"
        if status in (401, 403):
            return ConfigError(
                f"{judge.url} refuses the key ({quoted}). Set {KEYS[judge.provider]} to one that may ask it."
            )
        if status >= 500 or (status in PASSING and "insufficient_quota" not in said + str(error.body)):
            return Unread(quoted, seconds_asked(error.response.headers), is_free=True)
        if status in (400, 422) and request["logprobs"] and "logprobs" in said:
            return NoLogprobs(is_free=True)
        if status == 400 and (unsupported := UNSUPPORTED.search(quoted)):
            judge.ledger.refused.add(unsupported[1])
            return Unread(quoted, is_free=True)
        is_model = getattr(error, "param", None) == "model" or NO_SUCH_MODEL.search(quoted)
        if status in (400, 413, 422) and not is_model:
            # This one comparison may be too long, or against the vendor's policy.
            return Unread(quoted, is_free=True, is_final=True)
        return ModelError(
            f"{judge.url} will not answer as {judge.model} ({quoted}). Correct the model's name, the address or the account, and "
            "run the same again: what was answered is kept."
        )

    def _quoted(self, text: str) -> str:
        """In one line, and without the key."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST_QUOTE]


def _api_key(judge: EndpointJudge) -> str:
    variable = KEYS[judge.provider]
    key = os.environ.get(variable, "").strip()
    if not key and judge.url == VENDORS[judge.provider]:
        raise ConfigError(
            f"{judge.model} is asked at {judge.url}, which wants a key; set {variable}, or the address of a server of your own."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{variable} holds characters that no key has; set it anew.")
    return key


# -- what is sent -----------------------------------------------------------------------------------------------------


def _body(request: Request, refused: set[str]) -> dict[str, Any]:
    """As the vendor's library takes it; Anthropic's takes no temperature. That of both vendors is 1 where none is given."""
    length = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
    body = {"model": request["model"], "messages": request["messages"], length: request["max_tokens"]}
    if request["provider"] == "openai" and "temperature" not in refused:
        body["temperature"] = request["temperature"]
    if request["logprobs"]:
        body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    return body


# -- what comes back --------------------------------------------------------------------------------------------------


def _bound(response: Any, seconds: float) -> None:
    """Let no body be endless, in bytes or in time. The library calls this before it reads any, errors included."""
    stream, deadline = response.stream, time.monotonic() + seconds
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Unread("the reply is packed, which was not asked for")

    class Bounded(type(stream)):
        def __init__(self) -> None:
            """Nothing of its own."""

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in stream:
                size += len(part)
                if size > LARGEST_REPLY or time.monotonic() > deadline:
                    raise Unread(f"the reply had no end after {size} bytes and {seconds} seconds at most")
                yield part

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()


def _message(error: Any) -> str:
    """What the endpoint gave as its reason."""
    match error.body:
        case {"error": {"message": str(said)}} | {"message": str(said)}:
            return said
        case _:
            return str(error.message)


def seconds_asked(headers: Mapping[str, str]) -> float:
    """Of Retry-After, which is a number or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < math.inf else 0.0
