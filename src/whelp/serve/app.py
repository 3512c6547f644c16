"""The server: which address gives what."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast, final

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from whelp.errors import WhelpError
from whelp.serve.guard import check_key, guard, read_body
from whelp.serve.replies import DONE, Head, chunk, completion, event, usage
from whelp.serve.requests import LoadRequest, Refused, parsed, read_request
from whelp.serve.service import Job, Service
from whelp.web.security import LOCAL_NAMES

FAILED = Refused(500, "The server failed at this request; what it printed says why.")
routes = APIRouter(dependencies=[Depends(check_key)])


def create_app(service: Service, host_names: Sequence[str] | None = LOCAL_NAMES, api_key: str | None = None) -> FastAPI:
    """`host_names`: what the server may be called; None: anything. `api_key`: what requests must know; None: nothing."""
    app = FastAPI(title="whelp", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(guard)])
    app.state.service, app.state.api_key = service, api_key
    app.state.host_names = None if host_names is None else {name.strip("[]") for name in host_names}
    app.include_router(routes)

    @app.exception_handler(Refused)
    def refused(_: Request, why: Refused) -> Response:
        return JSONResponse(why.body(), why.status, {"WWW-Authenticate": "Bearer"} if why.status == 401 else None)

    @app.exception_handler(WhelpError)
    def wrong(_: Request, error: WhelpError) -> Response:
        return JSONResponse(Refused(400, str(error), "messages").body(), 400)

    @app.exception_handler(HTTPException)
    def not_here(request: Request, error: HTTPException) -> Response:
        why = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(why.body(), why.status, error.headers)

    @app.exception_handler(ClientDisconnect)
    def has_left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    def failed(_: Request, __: Exception) -> Response:
        return JSONResponse(FAILED.body(), FAILED.status)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


@routes.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    service = _service(request)
    return {"object": "list", "data": [_described(service, name) for name in service.models]}


@routes.get("/v1/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    service = _service(request)
    service.model(name)
    return _described(service, name)


@routes.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    asked = read_request(await read_body(request))
    service, head = _service(request), Head(asked.model)
    job = await service.prepare(asked)
    if asked.stream:
        return EventStream(events(service, job, head, asked.asks_usage))
    async with aclosing(service.pieces(job)) as pieces:
        async for _ in pieces:
            if await request.is_disconnected():
                raise ClientDisconnect
    return JSONResponse(completion(head, job.prompt_tokens, job.answers))


@routes.post("/load_model")
async def load_model(request: Request) -> Response:
    """What `transformers chat` asks before it says anything: models are loaded when the server starts."""
    asked = parsed(LoadRequest, await read_body(request))
    _service(request).model(asked.model)
    return Response(event({"status": "ready", "model": asked.model, "cached": True}), media_type="text/event-stream")


async def events(service: Service, job: Job, head: Head, asks_usage: bool) -> AsyncGenerator[str, None]:
    """A reply as server-sent events; an error in the middle is the last one."""
    without = {"usage": None} if asks_usage else {}
    yield event(chunk(head, {"role": "assistant", "content": ""}) | without)
    try:
        async with aclosing(service.pieces(job)) as pieces:
            async for piece in pieces:
                if piece:
                    yield event(chunk(head, {"content": piece}) | without)
    except Refused as why:
        yield event(why.body())
        return
    except Exception:
        yield event(FAILED.body())
        raise
    yield event(chunk(head, {}, job.answers[0].finish) | without)
    if asks_usage:
        yield event(chunk(head) | {"usage": usage(job.prompt_tokens, job.answers)})
    yield DONE


@final
class EventStream(StreamingResponse):
    """Server-sent events, whose generator is closed however the response ends: where the client has left, the model stops."""

    media_type = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(cast(AsyncGenerator[str, None], self.body_iterator)):
            await super().__call__(scope, receive, send)


def _service(request: Request) -> Service:
    return request.app.state.service


def _described(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "whelp"}
