"""What a request for an answer may ask, and how it is told what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

LONGEST_STOP, MOST_STOPS, MOST_ANSWERS = 1_000, 4, 8
DRAWN = "answers are drawn from the model's full distribution"
NO_LOGPROBS = "log-probabilities are not served"
NO_TOOLS = "tools are not served"
NOT_SERVED: Mapping[str, tuple[Any, str]] = {
    "top_p": (1, DRAWN),
    "top_k": (0, DRAWN),
    "min_p": (0, DRAWN),
    "frequency_penalty": (0, DRAWN),
    "presence_penalty": (0, DRAWN),
    "repetition_penalty": (1, DRAWN),
    "logit_bias": ({}, DRAWN),
    "logprobs": (False, NO_LOGPROBS),
    "top_logprobs": (0, NO_LOGPROBS),
    "tools": ([], NO_TOOLS),
    "functions": ([], NO_TOOLS),
    "response_format": ({"type": "text"}, "answers have no fixed form"),
}
"""Fields that would change the answer: the only value that may be given, and why. Other unknown fields are ignored."""


class Refused(Exception):
    """A request that is not answered. `param`: the field that is wrong, `code`: a name for what is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI says it."""
        type = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": type, "param": self.param, "code": self.code}}


def _text(content: Any) -> Any:
    """Parts as one text, a line break between them."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('a part is {"type": "text", "text": "..."}; nothing but text is served')
    return "\n".join(part["text"] for part in content)


def _listed(stop: Any) -> Any:
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Limit = Annotated[int | None, Field(ge=1)]


class Turn(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields of OpenAI's chat completions that are served; null is as good as nothing."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_ANSWERS)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    stop: Annotated[list[Stop], Field(max_length=MOST_STOPS), BeforeValidator(_listed)] = []
    seed: int | None = None

    @property
    def asks_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """Longest answer in tokens; None where the request leaves it to the server."""
        return self.max_completion_tokens or self.max_tokens


class LoadRequest(BaseModel):
    model: str


Kind = TypeVar("Kind", bound=BaseModel)


def parsed(kind: type[Kind], body: bytes) -> Kind:
    """Raises `Refused`, naming the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, fault["loc"])) or None
        said = fault["msg"].removeprefix("Value error, ")
        raise Refused(400, f"{param}: {said}" if param else said, param) from error


def read_request(body: bytes) -> ChatRequest:
    """Raises `Refused`, also where a field asks for what is not served."""
    request = parsed(ChatRequest, body)
    for name, (allowed, why) in NOT_SERVED.items():
        value = (request.model_extra or {}).get(name)
        if value is not None and value != allowed:
            raise Refused(400, f"{name}: given {value!r:.100}; only {allowed!r} is served: {why}", name)
    if request.stream and (request.n or 1) > 1:
        raise Refused(400, f"n: given {request.n}; a stream gives one answer", "n")
    return request
