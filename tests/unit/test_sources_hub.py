"""Where models come from: a hub on localhost."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from whelp.errors import ModelError
from whelp.models.loading import load_source
from whelp.models.sources import resolve


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    folder: Path
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
        commit = "a" * 40
        prefix = f"/owner/tiny/resolve/{commit}/"
        if self.path.startswith("/api/models/owner/tiny/tree/"):
            tree = [{"type": "file", "path": name, "size": len(content), "oid": ""} for name, content in files.items()]
            self.send(200, json.dumps(tree).encode(), body)
        elif self.path.startswith("/api/models/owner/tiny/"):
            listing = {"id": "owner/tiny", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            self.send(200, json.dumps(listing).encode(), body)
        elif self.path.startswith(prefix) and (name := self.path.removeprefix(prefix)) in files:
            self.send(200, files[name], body, commit)
        else:
            self.send(404, b"{}", body, error="RepoNotFound")

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


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    shutil.copytree(llama, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    handler = type("ThisHub", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def resolve_elsewhere(name: str) -> str:
    """What `resolve` gives in a process of its own: the hub library reads HF_ENDPOINT once, when it is imported."""
    code = """
import sys
from whelp.errors import ModelError
from whelp.models.sources import resolve
try:
    print(resolve(sys.argv[1]))
except ModelError as error:
    print("ModelError:", error)
"""
    result = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_a_hub_id(hub, llama, compute):
    folder = Path(resolve_elsewhere("owner/tiny"))
    assert {p.name for p in folder.iterdir()} == {p.name for p in llama.iterdir()}  # no pickle, no code
    assert (folder / "model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()
    assert load_source(folder, "lm", compute, 1).notes == ()
    assert any(path.endswith("/model.safetensors") for path in hub.asked)


def test_a_hub_id_that_does_not_exist(hub):
    found = resolve_elsewhere("owner/other")
    assert found.startswith("ModelError: the hub has no model 'owner/other'")
    assert "does not exist here" in found


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = resolve_elsewhere("owner/tiny")
    assert found.startswith("ModelError: 'owner/tiny' is not a folder here and could not be fetched from the hub")
    assert "Check the network" in found


def test_a_name_that_no_hub_could_have():
    with pytest.raises(ModelError, match=r"'my runs/sft' is not a folder here"):
        resolve("my runs/sft")
