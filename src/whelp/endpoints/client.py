"""A language model behind an address that speaks OpenAI's protocol, or Anthropic's.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from whelp.endpoints.replies import Kept, NoLogprobs, Replies, Request, Unread, key_of, parsed, usage, whole_text
from whelp.errors import ConfigError, Interrupted, ModelError
from whelp.types import Message

Provider = Literal["openai", "anthropic"]
Read = Callable[[Any, Request], dict[str, Any]]
"""What is kept of a reply, given what was asked. Raises `Unread` where it cannot be read."""
T = TypeVar("T")
VENDORS: dict[Provider, str] = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
KEYS: dict[Provider, str] = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}

ALTERNATIVES, OVERHEAD_TOKENS = 20, 64
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
    """What an endpoint has cost over all its calls, and what is known of it. Shared by the threads that ask it."""

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
class Endpoint:
    """Who is asked, how patiently, and for how much. The limit `max_cost` holds for the endpoint's whole life, with what earlier
    runs have paid for the same replies."""

    model: str
    replies: Replies
    provider: Provider = "openai"
    base_url: str | None = None
    """None: the vendor's own."""
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
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def ready(self) -> None:
        """Raises `ConfigError` where the key or the library is missing; nobody is asked."""
        with Line(self):
            pass

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def request(
        self, messages: Sequence[Message], max_tokens: int, temperature: float, has_logprobs: bool, draw: int | str
    ) -> Request:
        """`draw` tells apart what is asked several times."""
        return {
            "provider": self.provider,
            "base_url": self.url,
            "model": self.model,
            "messages": [{"role": one.role, "content": whole_text(one.content)} for one in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": has_logprobs,
            "vote": draw,
        }

    def kept(self, requests: Sequence[Request]) -> list[Kept] | None:
        """What was answered before, which counts as paid; None where one of them was not."""
        keys = [key_of(request) for request in requests]
        found = self.replies.get(keys)
        if not keys or len(found) < len(set(keys)):
            return None
        for key in keys:
            self.ledger.count(key, found[key].cost)
        return [found[key] for key in keys]

    def each(
        self, count: int, known: Callable[[int], T | None], ask: Callable[[Line, int], T | None]
    ) -> Iterator[tuple[int, T | None]]:
        """(place, result) of 0..count-1: first what is `known`, then what is asked, as it comes; None where nothing can be read.

        Raises `Interrupted` at the limit of cost, and `ConfigError` or `ModelError` where the endpoint will not answer: behind
        all that was answered, which is kept.
        """
        missing = []
        for place in range(count):
            if (result := known(place)) is None:
                missing.append(place)
            else:
                yield place, result
        if missing:
            yield from self._asked(missing, ask, is_heard=len(missing) < count)

    def _asked(
        self, places: Sequence[int], ask: Callable[[Line, int], T | None], is_heard: bool
    ) -> Iterator[tuple[int, T | None]]:
        failure = None
        with Line(self) as line, ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(_patiently, ask, line, place): place for place in places}
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


def _patiently(ask: Callable[[Line, int], T | None], line: Line, place: int) -> T | None:
    try:
        return ask(line, place)
    except Unread as error:
        if error.is_final:
            line.refusal = str(error)
        return None


class Line:
    """A connection to an endpoint, for as long as it is asked."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self.stop, self.refusal = endpoint, threading.Event(), ""
        self.key = _api_key(endpoint)
        try:
            self.library: Any = importlib.import_module(endpoint.provider)
        except ImportError as error:
            raise ConfigError("a model behind an address needs a library: pip install 'whelp[judge]'") from error
        http = self.library.DefaultHttpxClient(
            timeout=endpoint.timeout,
            follow_redirects=False,  # the key is for this address
            event_hooks={"response": [partial(_bound, seconds=endpoint.timeout)]},
        )
        client = self.library.OpenAI if endpoint.provider == "openai" else self.library.Anthropic
        self.client = client(
            api_key=self.key or "none",
            base_url=endpoint.url,
            timeout=endpoint.timeout,
            max_retries=0,  # malformed replies are retried here, and so is the rest
            default_headers={"Accept-Encoding": "identity"},
            http_client=http,
        )
        resource = self.client.chat.completions if endpoint.provider == "openai" else self.client.messages
        self.create = resource.with_raw_response.create

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()

    def answer(self, request: Request, read: Read) -> Kept:
        """From the database, or from the endpoint in so many attempts."""
        endpoint, key = self.endpoint, key_of(request)
        if found := endpoint.replies.get([key]):
            endpoint.ledger.count(key, found[key].cost)
            return found[key]
        for attempt in range(1, endpoint.attempts + 1):
            try:
                return endpoint.replies.put(request, self.send(key, request, read))
            except Unread as error:
                if error.is_final or (attempt == endpoint.attempts and not isinstance(error, Unreachable)):
                    raise
                reason, after = error, error.after
            if attempt < endpoint.attempts:
                back_off = endpoint.back_off * 2 ** (attempt - 1) * random.uniform(0.75, 1.0)
                self.stop.wait(min(max(back_off, after), LONGEST_WAIT))
        raise ModelError(
            f"nobody answers at {endpoint.url} ({reason}). Start the server, or correct the address, and run the same again: "
            "what was answered is kept."
        )

    def send(self, key: str, request: Request, read: Read) -> Kept:
        endpoint = self.endpoint
        said = [one["content"].encode() for one in request["messages"]]
        size = sum(map(len, said)) + OVERHEAD_TOKENS * len(said)  # no token is shorter than a byte
        cost = most = endpoint.cost(size, request["max_tokens"])
        if not endpoint.ledger.reserve(most, endpoint.max_cost, self.stop):
            raise Interrupted(
                f"{endpoint.name} has cost {endpoint.ledger.spent:.4f}, and the next request could pass max_cost, which is "
                f"{endpoint.max_cost}. All that it said is kept in the database; raise max_cost and run the same again: only the "
                "rest is asked."
            )
        try:
            payload = parsed(self.post(request))
            tokens = usage(payload, size, request["max_tokens"])
            cost = endpoint.cost(*tokens)
            return Kept(read(payload, request), *tokens, cost)
        except (Unread, NoLogprobs) as error:
            cost = 0.0 if error.is_free else cost
            raise
        except (ConfigError, ModelError):
            cost = 0.0
            raise
        finally:
            endpoint.ledger.settle(key, cost)

    def post(self, request: Request) -> bytes:
        try:
            return self.create(**_body(request, self.endpoint.ledger.refused)).http_response.content
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
        endpoint, status, said = self.endpoint, error.status_code, _message(error)
        quoted = f"{status}: {self._quoted(said)}"
        if status in (401, 403):
            return ConfigError(
                f"{endpoint.url} refuses the key ({quoted}). Set {KEYS[endpoint.provider]} to one that may ask it."
            )
        if status >= 500 or (status in PASSING and "insufficient_quota" not in said + str(error.body)):
            return Unread(quoted, seconds_asked(error.response.headers), is_free=True)
        if status in (400, 422) and request["logprobs"] and "logprobs" in said:
            return NoLogprobs(is_free=True)
        if status == 400 and (unsupported := UNSUPPORTED.search(quoted)):
            endpoint.ledger.refused.add(unsupported[1])
            return Unread(quoted, is_free=True)
        is_model = getattr(error, "param", None) == "model" or NO_SUCH_MODEL.search(quoted)
        if status in (400, 413, 422) and not is_model:
            # This one request may be too long, or against the vendor's policy.
            return Unread(quoted, is_free=True, is_final=True)
        return ModelError(
            f"{endpoint.url} will not answer as {endpoint.model} ({quoted}). Correct the model's name, the address or the "
            "account, and run the same again: what was answered is kept."
        )

    def _quoted(self, text: str) -> str:
        """In one line, and without the key."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST_QUOTE]


def _api_key(endpoint: Endpoint) -> str:
    variable = KEYS[endpoint.provider]
    key = os.environ.get(variable, "").strip()
    if not key and endpoint.url == VENDORS[endpoint.provider]:
        raise ConfigError(
            f"{endpoint.model} is asked at {endpoint.url}, which wants a key; set {variable}, or the address of a server of "
            "your own."
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
    if request["provider"] == "anthropic":
        system = "\n\n".join(one["content"] for one in request["messages"] if one["role"] == "system")
        body["messages"] = [one for one in request["messages"] if one["role"] != "system"]
        body |= {"system": system} if system else {}
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
