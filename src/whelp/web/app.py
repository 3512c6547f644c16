"""The web app: pages that the server renders, and a little JavaScript that saves reloading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from whelp.errors import DataError
from whelp.feedback.accounts import Accounts, SignedIn
from whelp.feedback.store import Store
from whelp.web import annotate
from whelp.web.markdown import render
from whelp.web.security import COOKIE, LOCAL_NAMES, NotAllowed, NotSignedIn, accounts_of, guard, remember, who

HERE = Path(__file__).parent
LOCAL_USER = "you"


def create_app(store: Store, host_names: Sequence[str] | None = LOCAL_NAMES) -> FastAPI:
    """`host_names`: what the server may be called; None: anything, and then nobody gets in without an account. On its own machine
    the first who comes is the admin, as long as there is no account."""
    app = FastAPI(title="whelp", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.accounts = Accounts(store)
    app.state.host_names = None if host_names is None else {name.strip("[]") for name in host_names}
    app.state.is_local = host_names == LOCAL_NAMES
    app.state.pages = pages = Jinja2Templates(HERE / "templates")
    pages.env.filters["markdown"] = render
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.middleware("http")(guard)
    app.include_router(annotate.routes)

    @app.exception_handler(NotSignedIn)
    async def to_sign_in(request: Request, _: NotSignedIn) -> Response:
        if request.app.state.is_local and accounts_of(request).is_empty() and request.method == "GET":
            return let_in(request)
        if request.headers.get("x-requested-with") or request.method != "GET":
            return HTMLResponse("You are signed out. Reload the page to sign in.", 401)
        return RedirectResponse(f"/sign_in?to={quote(request.url.path)}", 303)

    @app.exception_handler(NotAllowed)
    async def refused(request: Request, _: NotAllowed) -> Response:
        return say(request, "Your account may not do this.", 403)

    @app.exception_handler(DataError)
    async def wrong(request: Request, error: DataError) -> Response:
        if request.headers.get("x-requested-with"):
            return HTMLResponse(str(error), 409)
        return say(request, str(error), 409)

    @app.get("/")
    def home(request: Request, user: Annotated[SignedIn, Depends(who)]) -> Response:
        return pages.TemplateResponse(request, "projects.html", {"user": user, "projects": store.projects()})

    @app.get("/sign_in")
    def ask(request: Request, to: str = "/") -> Response:
        return pages.TemplateResponse(request, "sign_in.html", {"to": to, "problem": ""})

    @app.post("/sign_in")
    def sign_in(
        request: Request,
        name: Annotated[str, Form()],
        password: Annotated[str, Form()],
        to: Annotated[str, Form()] = "/",
    ) -> Response:
        try:
            token = accounts_of(request).sign_in(name, password)
        except DataError as error:
            return pages.TemplateResponse(request, "sign_in.html", {"to": to, "problem": str(error)}, status_code=401)
        response = RedirectResponse(own_path(to), 303)
        remember(response, request, token)
        return response

    @app.post("/sign_out")
    def sign_out(request: Request) -> Response:
        accounts_of(request).sign_out(request.cookies.get(COOKIE, ""))
        response = RedirectResponse("/sign_in", 303)
        response.delete_cookie(COOKIE)
        return response

    @app.get("/invites/{token}")
    def invited(request: Request, token: str) -> Response:
        return pages.TemplateResponse(request, "invited.html", {"token": token, "problem": ""})

    @app.post("/invites/{token}")
    def accept(
        request: Request, token: str, name: Annotated[str, Form()], password: Annotated[str, Form()]
    ) -> Response:
        try:
            user = accounts_of(request).accept(token, name, password)
        except DataError as error:
            seen = {"token": token, "problem": str(error)}
            return pages.TemplateResponse(request, "invited.html", seen, status_code=400)
        response = RedirectResponse("/", 303)
        remember(response, request, accounts_of(request).open_for(user))
        return response

    return app


def let_in(request: Request) -> Response:
    """Whoever sits at this machine is its one user."""
    accounts = accounts_of(request)
    user = accounts.store.user_named(LOCAL_USER)
    if user is None:
        user = accounts.store.add_user(LOCAL_USER, "admin")
    response = RedirectResponse(request.url.path, 303)
    remember(response, request, accounts.open_for(user))
    return response


def say(request: Request, text: str, status: int) -> Response:
    """A page that says one thing."""
    return request.app.state.pages.TemplateResponse(request, "say.html", {"text": text}, status_code=status)


def own_path(to: str) -> str:
    """Where to go on: a path of this server, never another one."""
    return to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/"
