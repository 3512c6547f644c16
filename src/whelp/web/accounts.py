"""Signing in and out, invitations, and who may do what."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from whelp.errors import DataError
from whelp.feedback.accounts import SignedIn
from whelp.feedback.store import ROLES, Role
from whelp.web.pages import Id, page
from whelp.web.security import COOKIE, accounts_of, at_least, remember

LOCAL_USER = "you"
routes = APIRouter()
Admin = Annotated[SignedIn, Depends(at_least("admin"))]


@routes.get("/sign_in")
def ask(request: Request, to: str = "/") -> Response:
    return page(request, "sign_in.html", to=to, problem="")


@routes.post("/sign_in")
def sign_in(
    request: Request, name: Annotated[str, Form()], password: Annotated[str, Form()], to: Annotated[str, Form()] = "/"
) -> Response:
    try:
        token = accounts_of(request).sign_in(name, password)
    except DataError as error:
        return page(request, "sign_in.html", 401, to=to, problem=str(error))
    response = RedirectResponse(own_path(to), 303)
    remember(response, request, token)
    return response


@routes.post("/sign_out")
def sign_out(request: Request) -> Response:
    accounts_of(request).sign_out(request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/sign_in", 303)
    response.delete_cookie(COOKIE)
    return response


@routes.get("/invites/{token}")
def invited(request: Request, token: str) -> Response:
    return page(request, "invited.html", token=token, problem="")


@routes.post("/invites/{token}")
def accept(request: Request, token: str, name: Annotated[str, Form()], password: Annotated[str, Form()]) -> Response:
    try:
        user = accounts_of(request).accept(token, name, password)
    except DataError as error:
        return page(request, "invited.html", 400, token=token, problem=str(error))
    response = RedirectResponse("/", 303)
    remember(response, request, accounts_of(request).open_for(user))
    return response


@routes.get("/people")
def people(request: Request, user: Admin) -> Response:
    return people_page(request, user)


@routes.post("/people/invite")
def invite(request: Request, user: Admin, role: Annotated[Role, Form()]) -> Response:
    """The link is shown once: the database does not know it."""
    token = accounts_of(request).invite(user.user, role)
    return people_page(request, user, link=str(request.url_for("invited", token=token)), role=role)


@routes.post("/people/{person}")
def change(
    request: Request,
    user: Admin,
    person: Id,
    role: Annotated[Role, Form()],
    active: Annotated[bool, Form()] = False,
) -> Response:
    accounts_of(request).change(person, role, active)
    return RedirectResponse("/people", 303)


def people_page(request: Request, user: SignedIn, link: str = "", role: str = "") -> Response:
    """`link`: one that was just made, for somebody of `role`."""
    found = accounts_of(request).people()
    return page(request, "people.html", user=user, people=found, roles=ROLES, link=link, role=role)


def to_sign_in(request: Request) -> Response:
    """What somebody gets whom nobody knows. Whoever sits at this machine is its one user, as long as there is no account."""
    accounts = accounts_of(request)
    if request.app.state.is_local and accounts.is_empty() and request.method == "GET":
        response = RedirectResponse(request.url.path, 303)
        remember(response, request, accounts.open_for(accounts.local_user(LOCAL_USER)))
        return response
    if request.headers.get("x-requested-with") or request.method != "GET":
        return HTMLResponse("You are signed out. Reload the page to sign in.", 401)
    return RedirectResponse(f"/sign_in?to={quote(request.url.path)}", 303)


def own_path(to: str) -> str:
    """Where to go on: a path of this server, never another one."""
    return to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/"
