"""Fixtures that several files of tests here share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from engine_helpers import STEADY
from report_helpers import write_run

from whelp.engines.base import ModelSpec
from whelp.engines.local import LocalEngine


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
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests about words: drawing takes most of the time."""
    monkeypatch.setattr("whelp.report.render._plots", lambda data: defaultdict(str))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "assistant")


@pytest.fixture(scope="session")
def llama(tiny_model_folder) -> Path:
    return tiny_model_folder("llama", num_hidden_layers=2)
