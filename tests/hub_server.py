"""A hub on localhost: as much of it as a download needs."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, owner/tiny."""

    folder: Path
    kind: Literal["models", "datasets"]
    asked: list[str]

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        files = {p.name: p.read_bytes() for p in self.folder.iterdir()}
        repository = f"/{'datasets/' if self.kind == 'datasets' else ''}owner/tiny/"
        prefix = f"{repository}resolve/{COMMIT}/"
        if self.path.startswith(f"/api/{self.kind}/owner/tiny/tree/"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": ""} for name, content in files.items()]
            self.send(200, json.dumps(tree).encode(), body)
        elif f"{self.path}/".startswith(f"/api/{self.kind}/owner/tiny/"):
            listing = {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self.send(200, json.dumps(listing).encode(), body)
        elif self.path.startswith(prefix) and (name := self.path.removeprefix(prefix)) in files:
            self.send(200, files[name], body, COMMIT)
        else:
            self.send(404, b"{}", body, error="EntryNotFound" if self.path.startswith(repository) else "RepoNotFound")

    def send(self, status: int, content: bytes, body: bool, commit: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if commit:
            self.send_header("X-Repo-Commit", commit)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serving(
    folder: Path, kind: Literal["models", "datasets"], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Hub]]:
    """The environment of a process that is started now: its hub is here."""
    handler = type("ThisHub", (Hub,), {"folder": folder, "kind": kind, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()
