"""Who sends a request, and whether a page of ours sent it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse

from whelp.feedback.accounts import SIGNED_IN_SECONDS, Accounts, SignedIn
from whelp.feedback.store import Role

COOKIE = "whelp_sign_in"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
LARGEST_BODY, LARGEST_UPLOAD = 1_000_000, 100_000_000
UPLOADS = "/import"
"""How the paths end to which an admin sends files."""
SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
DRAWN = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""For pages with drawings in them, whose lines have styles of their own."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class NotSignedIn(Exception):
    """Nobody is known by this request's cookie."""


class NotAllowed(Exception):
    """Somebody is, but may not do this."""


def accounts_of(request: Request) -> Accounts:
    return request.app.state.accounts


def who(request: Request) -> SignedIn:
    """Raises `NotSignedIn`."""
    found = accounts_of(request).who(request.cookies.get(COOKIE, ""))
    if found is None:
        raise NotSignedIn
    return found


def at_least(role: Role) -> Callable[[Request], SignedIn]:
    """A dependency of routes for those who may do what `role` may. Raises `NotSignedIn` and `NotAllowed`."""

    def check(request: Request) -> SignedIn:
        found = who(request)
        if not found.may(role):
            raise NotAllowed
        return found

    return check


def remember(response: Response, request: Request, token: str) -> None:
    """Sign this browser in."""
    is_secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, token, max_age=int(SIGNED_IN_SECONDS), httponly=True, samesite="lax", secure=is_secure, path="/"
    )


async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what another site makes a browser send (the cookie comes along, but browsers say where a request comes from), and
    what a foreign name that leads to this machine asks; and tell the browser what our pages never do."""
    name = host_name(request.headers.get("host", ""))
    allowed = request.app.state.host_names
    if allowed is not None and name not in allowed:
        return PlainTextResponse(f"This server is not called {name}.", 421)
    if request.method not in SAFE and not is_ours(request):
        return PlainTextResponse("This request comes from another site. Open the page and try again.", 403)
    if request.method not in SAFE and not is_small(request, LARGEST_BODY):
        # A body is read before anybody asks whose it is.
        is_upload = request.url.path.endswith(UPLOADS) and is_small(request, LARGEST_UPLOAD)
        if not is_upload or not await run_in_threadpool(is_admin, request):
            return PlainTextResponse(f"A request says how long it is, and has at most {LARGEST_BODY} bytes.", 413)
    response = await call_next(request)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if not request.url.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-store"
    return response


def is_small(request: Request, largest: int) -> bool:
    length = request.headers.get("content-length", "")
    return length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= largest


def is_admin(request: Request) -> bool:
    found = accounts_of(request).who(request.cookies.get(COOKIE, ""))
    return found is not None and found.may("admin")


def is_ours(request: Request) -> bool:
    """Whether a page of this server sent it: by the browser's word on the site, or on the origin."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")


def host_name(host: str) -> str:
    """A Host header without its port; "" for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # "[" without an end
        return ""
