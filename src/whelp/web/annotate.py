"""The annotator's pages: one task after another, and back again."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from whelp.errors import DataError
from whelp.feedback.accounts import SignedIn
from whelp.feedback.judgements import Judgement, Task
from whelp.feedback.store import Store
from whelp.web.security import accounts_of, at_least

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
routes = APIRouter()
Annotator = Annotated[SignedIn, Depends(at_least("annotator"))]


def store_of(request: Request) -> Store:
    return accounts_of(request).store


@routes.get("/projects/{project}/annotate")
def page(request: Request, project: int, user: Annotator) -> Response:
    """What is to be judged now."""
    return show(request, project, user, store_of(request).take(project, user.user))


@routes.post("/projects/{project}/tasks/{task}/judge")
def judge(
    request: Request,
    project: int,
    task: int,
    user: Annotator,
    kind: Annotated[str, Form()],
    key: Annotated[str, Form(min_length=8, max_length=64)],
    rank: Annotated[list[str] | None, Form()] = None,
    strength: Annotated[str, Form()] = "",
    both_bad: Annotated[bool, Form()] = False,
    comment: Annotated[str, Form()] = "",
) -> Response:
    """`rank`: one for each completion as it stands on the page; `key`: drawn with the page, so that a form that is sent twice
    counts once."""
    if kind not in ("vote", "skip", "flag"):
        raise DataError(f"kind: got {kind[:20]!r}; expected vote, skip or flag.")
    ranks = tuple(map(whole, rank or ())) if kind == "vote" else None
    said = Judgement(kind, ranks, whole(strength) if strength and kind == "vote" else None, both_bad, comment.strip())
    store_of(request).submit(user.user, task, said, key)
    return onward(request, project, user)


@routes.post("/projects/{project}/tasks/{task}/draft", status_code=204)
def draft(request: Request, task: int, user: Annotator, content: Annotated[dict[str, Any], Body()]) -> None:
    """Keep what is on the page and not sent."""
    store_of(request).save_draft(user.user, task, content)


@routes.post("/projects/{project}/undo")
def undo(
    request: Request, project: int, user: Annotator, key: Annotated[str, Form(min_length=8, max_length=64)]
) -> Response:
    """Back to what was judged last."""
    return onward(request, project, user, store_of(request).undo(project, user.user, key))


def onward(request: Request, project: int, user: SignedIn, task: Task | None = None) -> Response:
    """A script that asked gets `task`, or else the next one; a form gets the page, which takes it."""
    if request.headers.get("x-requested-with"):
        return show(request, project, user, task or store_of(request).take(project, user.user), "task.html")
    return RedirectResponse(f"/projects/{project}/annotate", 303)


def show(
    request: Request, project: int, user: SignedIn, task: Task | None, template: str = "annotate.html"
) -> Response:
    store = store_of(request)
    rules, mine, given, wanted = store.rules(project), *store.progress(project, user.user)
    seen = {
        "user": user,
        "project": rules,
        "task": task,
        "letters": LETTERS,
        "mine": mine,
        "given": given,
        "wanted": wanted,
        "key": uuid.uuid4().hex,
        "undo_key": uuid.uuid4().hex,
    }
    return request.app.state.pages.TemplateResponse(request, template, seen)


def whole(text: str) -> int:
    """Raises `DataError` where it is no number."""
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise DataError(f"got {text[:20]!r}; expected a rank for each completion: give every one a place, or skip.")
    return int(text)
