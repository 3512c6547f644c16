"""What the routes share: the store behind a request, and pages made of templates."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Request, Response

from whelp.feedback.store import Store
from whelp.web.security import accounts_of

Id = Annotated[int, Path(ge=-(2**63), lt=2**63)]
"""Of something in the database, which holds no longer number."""


def store_of(request: Request) -> Store:
    return accounts_of(request).store


def page(request: Request, template: str, status: int = 200, **seen: Any) -> Response:
    return request.app.state.pages.TemplateResponse(request, template, seen, status_code=status)


def say(request: Request, text: str, status: int) -> Response:
    """A page that says one thing."""
    return page(request, "say.html", status, text=text)
