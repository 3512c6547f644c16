"""The web app: pages that the server renders, and a little JavaScript that saves reloading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from whelp.errors import WhelpError
from whelp.feedback.accounts import Accounts, SignedIn
from whelp.feedback.store import Store
from whelp.web import accounts, annotate, lead, playground, runs
from whelp.web.markdown import render
from whelp.web.pages import page, say
from whelp.web.playground import Playground
from whelp.web.processes import Processes
from whelp.web.security import LOCAL_NAMES, NotAllowed, NotSignedIn, guard, who

HERE = Path(__file__).parent
DEFAULT_RUNS = Path("runs")


def create_app(
    store: Store,
    host_names: Sequence[str] | None = LOCAL_NAMES,
    runs_folder: Path = DEFAULT_RUNS,
    models: Playground | None = None,
) -> FastAPI:
    """`host_names`: what the server may be called; None: anything, and then nobody gets in without an account. On its own machine
    the first who comes is the admin, as long as there is no account. `runs_folder`: whose runs are shown, and where training from
    the page goes. `models`: those of the playground."""
    app = FastAPI(title="whelp", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.accounts = Accounts(store)
    app.state.host_names = None if host_names is None else {name.strip("[]") for name in host_names}
    app.state.is_local = host_names == LOCAL_NAMES
    app.state.runs_folder = runs_folder
    app.state.processes = Processes(runs_folder)
    app.state.plots = runs.Plots()
    app.state.models = models
    app.state.pages = Jinja2Templates(HERE / "templates")
    app.state.pages.env.filters["markdown"] = render
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.middleware("http")(guard)
    for routes in (accounts.routes, *annotate.ROUTES, lead.routes, playground.routes, runs.routes):
        app.include_router(routes)

    @app.exception_handler(NotSignedIn)
    def not_signed_in(request: Request, _: NotSignedIn) -> Response:
        return accounts.to_sign_in(request)

    @app.exception_handler(NotAllowed)
    def refused(request: Request, _: NotAllowed) -> Response:
        return told(request, "Your account may not do this.", 403)

    @app.exception_handler(WhelpError)
    def wrong(request: Request, error: WhelpError) -> Response:
        return told(request, str(error), 409)

    @app.exception_handler(RequestValidationError)
    def cannot_be_read(request: Request, error: RequestValidationError) -> Response:
        faults = (f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors())
        return told(request, "; ".join(faults), 422)

    @app.get("/")
    def home(request: Request, user: Annotated[SignedIn, Depends(who)]) -> Response:
        return page(request, "projects.html", user=user, projects=lead.progress_of_all(store, user.user))

    return app


def told(request: Request, text: str, status: int) -> Response:
    """What is wrong: a line for a script, a page for a person."""
    if request.headers.get("x-requested-with"):
        return PlainTextResponse(text, status)
    return say(request, text, status)
