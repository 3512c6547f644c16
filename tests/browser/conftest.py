"""A real Chromium and a real server: the pages as people use them."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("WHELP_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
MISSING = "no Chromium here: install Debian's chromium, or name one by WHELP_CHROMIUM, to run the browser tests"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, serve: Callable[[Any], str]) -> Iterator[Any]:
    """A page that fails its test where a script of ours fails, or where the browser refuses something. It is closed before the
    server: a draft that is saved a moment later finds it still there."""
    context = chromium.new_context()
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.problems = problems
    page.set_default_timeout(15_000)
    yield page
    context.close()
    assert problems == []


class Served:
    """An app behind a real port, in a thread."""

    def __init__(self, app: Any, port: int):
        import uvicorn

        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(free_port: int) -> Iterator[Callable[[Any], str]]:
    """`serve(app)`: its address. Called again, the server has been started anew."""
    pytest.importorskip("uvicorn")
    running: list[Served] = []

    def start(app: Any) -> str:
        while running:
            running.pop().stop()
        running.append(Served(app, free_port))
        return f"http://127.0.0.1:{free_port}"

    yield start
    while running:
        running.pop().stop()


@pytest.fixture
def screenshots() -> Path | None:
    """Where pictures for people go: the folder that WHELP_SCREENSHOTS names."""
    named = os.environ.get("WHELP_SCREENSHOTS")
    return Path(named) if named else None
