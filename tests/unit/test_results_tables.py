"""The tables of docs/results.md, from records made by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from whelp.runs.files import write_json_atomic

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("benchmark_results", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def record(results, seed: int, passes: dict[str, list[bool]]) -> dict:
    """Two prompts; a pass or a fail for each under base, SFT and RLHF."""
    experiment = results.EXPERIMENTS[1]
    answers = {
        model: {
            prompt: {"category": "writing", "greedy": float(row[i]), "length": 10 * (i + 1)}
            for prompt, row in passes.items()
        }
        for i, model in enumerate(("base", "sft", "rlhf"))
    }
    return {
        "seed": seed,
        "identity": results.identity(experiment.recipe(seed)),
        "stages": {"evaluate": {"kl": {"rlhf": {"mean": 2.0 + seed}}, "judge": None}},
        "answers": answers,
        "wins": {},
    }


def test_seeds_alone_and_together(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    experiment = results.EXPERIMENTS[1]
    first = {"a": [False, False, True], "b": [False, True, True]}
    second = {"a": [False, False, False], "b": [False, True, True]}
    write_json_atomic(experiment.record(0), record(results, 0, first))
    write_json_atomic(experiment.record(1), record(results, 1, second))
    table, kinds = results.tables(experiment).split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[2][:5] == [
        "seed 0, greedy",
        "0% (0 to 0)",
        "50% (0 to 100)",
        "100% (100 to 100)",
        "+50.0 (+0.0 to +100.0)",
    ]
    assert rows[3][4] == "+0.0 (+0.0 to +0.0)"
    assert rows[4][0] == "**2 seeds**, greedy" and rows[4][3].startswith("75%") and rows[4][4].startswith("+25.0")
    assert [row[5] for row in rows[2:]] == ["2.0", "3.0", "2.5"]
    assert rows[2][6] == "20 / 30"
    assert "| writes | 0% | 50% | 75% |" in kinds


def test_samples_have_rows_and_columns_of_their_own(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    experiment = results.EXPERIMENTS[1]
    rows = [
        {"id": "a", "category": "writing", "model": model, "mode": mode, "length": 7, "passes": passes}
        for model, mode, passes in [
            ("sft", "greedy", True),
            ("sft", "sampled", True),
            ("sft", "sampled", False),
            ("sft", "sampled", False),
            ("sft", "sampled", False),
            ("rlhf", "sampled", True),
            ("rlhf", "greedy", False),
        ]
    ]
    assert results.by_prompt(rows, "base") == {}
    made = record(results, 0, {"a": [False] * 3})
    made["answers"] |= {model: results.by_prompt(rows, model) for model in ("sft", "rlhf")}
    made["answers"]["base"]["a"]["sampled"] = 0.0
    write_json_atomic(experiment.record(0), made)
    table, kinds = results.tables(experiment).split("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[2][0] == "seed 0, greedy" and lines[2][2:4] == ["100% (100 to 100)", "0% (0 to 0)"]
    assert lines[3][0] == "seed 0, sampled" and lines[3][2:5] == [
        "25% (25 to 25)",
        "100% (100 to 100)",
        "+75.0 (+75.0 to +75.0)",
    ]
    assert "| writes | 0% | 100% | 0% | 0% | 25% | 100% |" in kinds


def test_a_record_of_other_data_or_settings_is_not_shown(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    experiment = results.EXPERIMENTS[1]
    now = results.identity(experiment.recipe(0))
    settings, data = now["settings"], now["data"]
    for identity in (
        {"settings": settings, "data": data | {"prompts": "of yesterday"}},
        {"settings": settings | {"trainable_layers": 7}, "data": data},
        {"settings": settings | {"ppo": settings["ppo"] | {"lam": 0.5}}, "data": data},
        {"settings": settings | {"ppo": settings["ppo"] | {"once": 1}}, "data": data},
    ):
        write_json_atomic(experiment.record(0), record(results, 0, {"a": [True] * 3}) | {"identity": identity})
        assert results.tables(experiment).startswith("No run of")


def test_a_record_from_before_a_setting_was_made_is_shown(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    experiment = results.EXPERIMENTS[1]
    old = record(results, 0, {"a": [True] * 3})
    del old["identity"]["settings"]["dtype"]
    del old["identity"]["settings"]["ppo"]["cliprange"]
    write_json_atomic(experiment.record(0), old)
    assert results.is_current(experiment, 0)
    del old["identity"]["settings"]["ppo"]["batch_size"]  # not at its default in this recipe
    write_json_atomic(experiment.record(0), old)
    assert not results.is_current(experiment, 0)


def test_identity_follows_what_the_recipe_reads_and_nothing_else(results, tmp_path, monkeypatch):
    assistant, checker = results.EXPERIMENTS
    before = results.identity(assistant.recipe(0)), results.identity(checker.recipe(0))
    other = tmp_path / "rankings.jsonl"
    other.write_text("{}\n")
    monkeypatch.setattr(results, "DATA", [other if file.stem == "rankings" else file for file in results.DATA])
    assert results.identity(assistant.recipe(0)) != before[0]
    assert results.identity(checker.recipe(0)) == before[1]
    assert results.identity(checker.recipe(1)) != before[1]
