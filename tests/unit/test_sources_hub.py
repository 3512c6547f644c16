"""Where models come from: a hub on localhost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serving

from whelp.errors import ModelError
from whelp.models.loading import load_source
from whelp.models.sources import resolve


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    shutil.copytree(llama, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    with serving(folder, "models", tmp_path / "cache", monkeypatch) as handler:
        yield handler


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
