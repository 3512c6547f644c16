"""What the tests of the pages share."""

from __future__ import annotations

from fastapi.testclient import TestClient

from whelp.feedback.accounts import Accounts
from whelp.feedback.judgements import NewItem
from whelp.feedback.store import Role, Store
from whelp.types import Message
from whelp.web.app import create_app

HERE = "http://localhost"
PASSWORD = "correct horse battery"
OURS = {"Origin": HERE}


def browser(store: Store, **options: object) -> TestClient:
    """Somebody at the server's own machine, who has looked at its first page; elsewhere with `host_names`."""
    client = TestClient(create_app(store, **options), base_url=HERE, headers=OURS)
    if "host_names" not in options:
        client.get("/")
    return client


def signed_in(store: Store, name: str, role: Role, **options: object) -> TestClient:
    """Somebody with a new account."""
    Accounts(store).add(name, PASSWORD, role)
    client = browser(store, host_names=None, **options)
    client.post("/sign_in", data={"name": name, "password": PASSWORD})
    return client


def filled(store: Store, count: int = 3, completions: int = 2, **rules: object) -> int:
    project = store.add_project("helpful", **rules)
    store.add_items(
        project,
        [
            NewItem((Message("user", f"question {i}"),), tuple(f"answer {i}.{k}" for k in range(completions)))
            for i in range(count)
        ],
    )
    return project
