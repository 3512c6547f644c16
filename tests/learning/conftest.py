"""Data and a recipe for tests that run whole stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_helpers import WORDS, recipe_of, write_jsonl

from whelp.config import Recipe


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "demos.jsonl", [{"prompt": f"say {w}", "completion": f"{w} {w}."} for w in WORDS])
    answers = ["yes", "nah", "hmm"]  # alike on the surface, so that nothing but the words can be learned
    write_jsonl(
        folder / "rankings.jsonl",
        [
            {"prompt": f"rank {w} {i}", "completions": [f"{a} {a} {a}" for a in answers], "ranks": [1, 2 + i % 2, 2]}
            for i in range(4)
            for w in WORDS
        ],
    )
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"talk of {w}"} for w in WORDS[:8]])
    check = {"kind": "helps", "any": ["fine"]}
    write_jsonl(
        folder / "evaluation.jsonl", [{"prompt": f"tell me {w}", "category": "howto", "check": check} for w in WORDS]
    )
    return folder


@pytest.fixture
def recipe(tiny_model_folder, data: Path, tmp_path: Path) -> Recipe:
    return recipe_of(tiny_model_folder("llama"), data, tmp_path / "run")
