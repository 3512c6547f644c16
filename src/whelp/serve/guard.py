"""Who may ask: this machine under its own name, no page of another site, and whoever knows the key."""

from __future__ import annotations

import secrets

from fastapi import Request

from whelp.serve.requests import Refused
from whelp.web.security import LARGEST_BODY, host_name


async def guard(request: Request) -> None:
    """Raises `Refused` where a foreign name leads to this machine, or where a browser says that another site's page asks."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    allowed = request.app.state.host_names
    if allowed is not None and host_name(host) not in allowed:
        raise Refused(421, f"This server is not called {host!r:.100}.")
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or (origin is not None and origin.partition("://")[2] != host):
        raise Refused(403, "This request comes from a page of another site, which may not ask this server.")


async def check_key(request: Request) -> None:
    """Raises `Refused` where the server has a key and the request does not know it."""
    key: str | None = request.app.state.api_key
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    is_known = secrets.compare_digest(given.strip().encode("latin-1"), key.encode())
    if scheme.lower() != "bearer" or not is_known:
        raise Refused(401, "This server asks for its key: Authorization: Bearer <key>.", code="invalid_api_key")


async def read_body(request: Request) -> bytes:
    """Raises `Refused` as soon as it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"A request has at most {LARGEST_BODY} bytes.")
    return body
