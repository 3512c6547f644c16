"""An endpoint on localhost that answers as it is told, well or badly."""

from __future__ import annotations

import gzip
import http.server
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 10
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}


@dataclass(frozen=True)
class Answer:
    """What goes over the wire."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    does_hang: bool = False
    """Sends nothing until the server is closed."""
    does_drip: bool = False
    """Sends a byte at a time, without end."""
    does_close: bool = False
    """Hangs up."""


def json_of(payload: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(payload).encode(), status, {name.replace("_", "-"): v for name, v in headers.items()})


def said(text: Any, logprobs: Any = None, usage: Any = USAGE, finish: str = "stop") -> Answer:
    """As OpenAI says it."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    return json_of({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def spoken(*blocks: object, stop: str = "end_turn") -> Answer:
    """As Anthropic says it."""
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS}
    return json_of({"id": "m", "type": "message", "content": list(blocks), "stop_reason": stop, "usage": usage})


def listed(*top: tuple[str, float]) -> dict[str, Any]:
    """The likeliest first tokens, with log-probabilities."""
    tokens = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
    return {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": tokens}]}


def with_odds(p: float) -> Answer:
    """A with probability p, B with 1 - p."""
    return said("A" if p > 0.5 else "B", listed(("A", math.log(p)), ("B", math.log(1 - p))))


def refusal(status: int, message: str, **more: Any) -> Answer:
    return json_of({"error": {"message": message, "type": "error", "param": None, "code": None, **more}}, status)


LIKELY = listed(("A", math.log(0.8)), ("B", math.log(0.2)))
FINE = said("A", LIKELY)
NO_SENSE = {
    "503 forever": refusal(503, "busy"),
    "a closed connection": Answer(does_close=True),
    "HTML": Answer(b"<html><body>Bad gateway</body></html>", headers={"Content-Type": "text/html"}),
    "nothing": Answer(b""),
    "JSON cut off": Answer(FINE.body[:60]),
    "a body shorter than was said": Answer(FINE.body[:60], headers={"Content-Length": "5000"}),
    "no choices": json_of({"id": "x", "usage": {}}),
    "empty choices": json_of({"choices": []}),
    "choices of a wrong type": json_of({"choices": {"0": "A"}}),
    "a choice of a wrong type": json_of({"choices": ["A"]}),
    "a message of a wrong type": json_of({"choices": [{"message": "A"}]}),
    "null for a text": said(None, LIKELY),
    "a number for a text": said(5, LIKELY),
    "a list": json_of([1, 2]),
    "a number": Answer(b"1e999"),
    "text that is not UTF-8": Answer(b'{"choices": "\xff\xfe"}'),
    "brackets without end": Answer(b"[" * 200_000),
    "log-probabilities of a wrong type": said("A", "high"),
    "a list of a wrong type": said("A", {"content": [{"top_logprobs": {"A": -0.1}}]}),
    "a token of a wrong type": said("A", listed((5, -0.1))),
    "NaN": said("A", listed(("A", math.nan), ("B", math.log(0.2)))),
    "minus infinity": said("A", listed(("A", -math.inf), ("B", math.log(0.2)))),
    "a positive log-probability": said("A", listed(("A", 0.7), ("B", math.log(0.2)))),
    "a string for a log-probability": said("A", listed(("A", "-0.1"), ("B", math.log(0.2)))),
    "two that are certain": said("A", listed(("A", 0.0), ("B", 0.0))),
    "letters that are neither": said("C", listed(("C", math.log(0.8)), ("D", math.log(0.2)))),
    "a reply of a megabyte": said("A" * 2**20, LIKELY),
    "an error of a megabyte": refusal(500, "x" * 2**20),
    "a packed reply": Answer(gzip.compress(b" " * 2**24), headers={"Content-Encoding": "gzip"}),
}
"""Answers that cannot be read."""


class Endpoint:
    """`say(name, number)`: the answer when "question <name>", or all that is said last, is asked for the so-manieth time."""

    def __init__(self, say: Callable[[str, int], Answer]):
        self.say = say
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.asked: Counter[str] = Counter()
        self.now = self.most = 0
        """Requests under way, and the most that ever were."""
        self.url = ""

    def heard(self, handler: http.server.BaseHTTPRequestHandler) -> Answer:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        found = re.search(r"question (\w+)", said)
        name = found[1] if found else said
        with self.lock:
            number = self.asked[name]
            self.asked[name] += 1
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
        return self.say(name, number)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        yield
        with self.lock:
            self.now -= 1


class Handler(http.server.BaseHTTPRequestHandler):
    endpoint: Endpoint

    def log_message(self, *_):
        pass

    def do_POST(self):
        with self.endpoint.under_way(), suppress(ConnectionError):
            self.send(self.endpoint.heard(self))

    def send(self, answer: Answer) -> None:
        if answer.does_hang:
            self.endpoint.closed.wait(10)
        if answer.does_hang or answer.does_close:
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        if not answer.does_drip:
            self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)
        while answer.does_drip and not self.endpoint.closed.wait(0.01):
            self.wfile.write(b" ")


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_):
        """Who hangs up is no news."""


@contextmanager
def serving(say: Callable[[str, int], Answer]) -> Iterator[Endpoint]:
    endpoint = Endpoint(say)
    server = Server(("127.0.0.1", 0), type("ThisHandler", (Handler,), {"endpoint": endpoint}))
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        endpoint.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
