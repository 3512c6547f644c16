"""The desks at which people judge: one task after another, and back again.

The annotations are not postponed: FastAPI reads them, and finds no name of an enclosing function in a text.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response

from whelp.errors import DataError
from whelp.feedback.accounts import SignedIn
from whelp.feedback.judgements import Judgement, Task
from whelp.feedback.store import Role, Store
from whelp.feedback.verdicts import Said, Verdicts
from whelp.web.pages import Id, page, store_of
from whelp.web.security import at_least

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Taken = tuple[Task | None, Sequence[Said]]
"""A task, and what was said about it by others, where that is shown."""
Key = Annotated[str, Form(min_length=8, max_length=64)]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one takes tasks and judges them. `is_verdict`: what others were at odds about, with what they said beside it."""

    name: str
    role: Role
    is_verdict: bool = False

    def take(self, store: Store, project: int, user: int) -> Taken:
        if self.is_verdict:
            return Verdicts(store).take(project, user) or (None, [])
        return store.take(project, user), []

    def judge(self, store: Store, project: int, user: int, task: int, said: Judgement, key: str) -> Taken:
        """What comes next."""
        if self.is_verdict:
            store.submit(user, task, said, key, is_verdict=True)
            return self.take(store, project, user)
        return store.submit_and_take(project, user, task, said, key), []


def routes_of(desk: Desk) -> APIRouter:
    """The page of a desk, and what its forms and its script send."""
    routes = APIRouter(prefix=f"/projects/{{project}}/{desk.name}")
    person = Depends(at_least(desk.role))

    @routes.get("")
    def see(request: Request, project: Id, user: Annotated[SignedIn, person]) -> Response:
        """What is to be judged now."""
        return show(request, desk, project, user, "annotate.html", desk.take(store_of(request), project, user.user))

    @routes.post("/tasks/{task}/judge")
    def judge(
        request: Request,
        project: Id,
        task: Id,
        user: Annotated[SignedIn, person],
        kind: Annotated[str, Form()],
        key: Key,
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
        said = Judgement(
            kind, ranks, whole(strength) if strength and kind == "vote" else None, both_bad, comment.strip()
        )
        return onward(request, desk, project, user, desk.judge(store_of(request), project, user.user, task, said, key))

    @routes.post("/tasks/{task}/draft", status_code=204)
    def draft(
        request: Request, task: Id, user: Annotated[SignedIn, person], content: Annotated[dict[str, Any], Body()]
    ) -> None:
        """Keep what is on the page and not sent."""
        store_of(request).save_draft(user.user, task, content, desk.is_verdict)

    @routes.post("/undo")
    def undo(request: Request, project: Id, user: Annotated[SignedIn, person], key: Key) -> Response:
        """Back to what was judged last."""
        store_of(request).undo(project, user.user, key, desk.is_verdict)
        return onward(request, desk, project, user, desk.take(store_of(request), project, user.user))

    return routes


def onward(request: Request, desk: Desk, project: int, user: SignedIn, taken: Taken) -> Response:
    """A script gets what was taken, a form the page that shows it."""
    if request.headers.get("x-requested-with"):
        return show(request, desk, project, user, "task.html", taken)
    return RedirectResponse(f"/projects/{project}/{desk.name}", 303)


def show(request: Request, desk: Desk, project: int, user: SignedIn, template: str, taken: Taken) -> Response:
    store, (task, said) = store_of(request), taken
    mine, given, wanted = store.progress(project, user.user)
    if desk.is_verdict:
        verdicts = store.votes(project, is_verdict=True)
        mine, given = sum(vote.user == user.name for vote in verdicts), len(verdicts)
        wanted = given + Verdicts(store).waiting(project)
    return page(
        request,
        template,
        user=user,
        desk=desk,
        project=store.rules(project),
        task=task,
        said=said,
        letters=LETTERS,
        mine=mine,
        given=given,
        wanted=wanted,
        key=uuid.uuid4().hex,
        undo_key=uuid.uuid4().hex,
    )


def whole(text: str) -> int:
    """Raises `DataError` where it is no number."""
    if not text.isascii() or not text.isdigit() or len(text) > 3:
        raise DataError(f"got {text[:20]!r}; expected a rank for each completion: give every one a place, or skip.")
    return int(text)


ROUTES = (routes_of(Desk("annotate", "annotator")), routes_of(Desk("adjudicate", "adjudicator", is_verdict=True)))
