"""Schemathesis makes requests of every kind that the routes allow, and of many that they do not: none may break the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("fastapi")
from report_helpers import write_run
from web_helpers import HERE, OURS, filled

from whelp.feedback.accounts import Accounts
from whelp.feedback.store import Store
from whelp.web.app import create_app
from whelp.web.playground import Playground
from whelp.web.processes import Processes
from whelp.web.security import COOKIE

schemathesis = pytest.importorskip("schemathesis")


class Silent:
    """Models of the playground that say little."""

    def refuse_long(self, messages) -> None:
        pass

    def answers(self, messages, names, key) -> Iterator[tuple[str, str]]:
        for name in names:
            yield name, f"I am {name}."


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    folder = tmp_path_factory.mktemp("schema")
    store = Store(folder / "feedback.db")
    filled(store, 200, overlap=2)
    write_run(folder / "runs" / "assistant")
    app = create_app(store, runs_folder=folder / "runs", models=Playground(Silent(), ["base", "sft"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "start", lambda *_: None)
        yield app
    store.close()


def test_no_request_breaks_the_server(app) -> None:
    accounts = Accounts(app.state.accounts.store)
    token = accounts.open_for(accounts.local_user("you"))
    tried = {}
    for found in schemathesis.openapi.from_dict(app.openapi()).get_all_operations():
        operation = found.ok()

        @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case) -> None:
            headers = dict(case.headers or {}) | OURS | {"Cookie": f"{COOKIE}={token}"}
            answer = case.call(base_url=HERE, headers=headers, app=app)
            tried.setdefault(operation.label, set()).add(answer.status_code)  # noqa: B023
            assert answer.status_code < 500, (case.as_curl_command(), answer.text[:500])

        answers()
    assert len(tried) == sum(len(methods) for methods in app.openapi()["paths"].values())
    assert 200 in tried["GET /projects/{project}/annotate"] | tried["GET /projects/{project}"]


def test_every_route_is_tried(app) -> None:
    paths = app.openapi()["paths"]
    assert len(paths) >= 25
    assert {
        "/projects/{project}/annotate/tasks/{task}/judge",
        "/playground/ask",
        "/people/{person}",
        "/runs/{name}",
    } <= set(paths)
