"""The races against other programs: turns in order, equal work, and a limit that counts what a model multiplies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from whelp.engines import local
from whelp.engines.base import ModelSpec, SamplingParams
from whelp.types import Message, Prompt

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks" / part) for part in (".", "racers")]
races, limit, ours = (
    pytest.importorskip(name, reason="benchmarks/ lies beside tests/") for name in ("races", "limit", "ours")
)

RACER = """
import json, sys, time
from pathlib import Path
from turns import Turns
side, log = json.loads(sys.argv[2]), Path(json.loads(Path(sys.argv[1]).read_text())["log"])
turns = Turns()
print("what a library has to say")
while True:
    turns.wait()
    with log.open("a") as file:
        file.write(side["name"])
    if side.get("breaks"):
        raise ValueError("no more of this")
    time.sleep(side["seconds"])
    turns.done(steps=side["steps"])
"""


def two(tmp_path: Path, **second) -> races.Race:
    (tmp_path / "racer.py").write_text(RACER)
    sides = [{"name": "a", "steps": 4, "seconds": 0.01}, {"name": "b", "steps": 4, "seconds": 0.2} | second]
    script = str(tmp_path / "racer.py")
    return races.Race("r", "a race", lambda place: {}, tuple(races.Side(s["name"], script, None, s) for s in sides), 3)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(races.RACERS))
    return tmp_path / "log"


@pytest.mark.proof
def test_sides_take_turns_and_the_first_of_each_does_not_count(tmp_path: Path, log: Path) -> None:
    chosen = two(tmp_path)
    found = races.contest(chosen, {"log": str(log)}, rounds=3)
    assert log.read_text() == "abababab"
    assert [len(turns) for turns in found["turns"].values()] == [3, 3]
    record = found | {"machine": "m", "dtype": "float32"}
    assert min(races.ratios(record, "b", "a")) > 1
    assert races.row(chosen, record)[0] == "a race"
    assert all(peak > 1 for peak in found["peak_mb"].values())


def test_unequal_work_is_refused(tmp_path: Path, log: Path) -> None:
    with pytest.raises(SystemExit, match="b has steps 5, a 4; expected as many"):
        races.contest(two(tmp_path, steps=5), {"log": str(log)}, rounds=1)


def test_a_side_that_breaks_down_is_told_with_its_reason(tmp_path: Path, log: Path) -> None:
    with pytest.raises(SystemExit, match=r"b broke down(?s:.*)no more of this"):
        races.contest(two(tmp_path, breaks=True), {"log": str(log)}, rounds=1)


def test_the_best_of_several_peers_counts(tmp_path: Path) -> None:
    sides = tuple(races.Side(name) for name in ("whelp", "slow", "quick", "limit"))
    seconds = {"whelp": [2.0, 1.0, 2.0], "slow": [9.0, 9.0, 9.0], "quick": [6.0, 4.0, 8.0], "limit": [1.0, 0.8, 1.0]}
    record = {
        "turns": {
            name: [{"seconds": s, "pairs": 300, "multiplied": 5e12} for s in values] for name, values in seconds.items()
        },
        "peak_mb": {"whelp": 1024.0, "slow": 1.0, "quick": 4096.0, "limit": 1.0},
    }
    chosen = races.Race("r", "a race", lambda place: {}, sides, 3, 1 / 3, 0.5)
    assert races.row(chosen, record) == [
        "a race",
        "2.0 (1.0 to 2.0)",
        "150 pairs, 2,500 GFLOP",
        "quick: 6.0 (4.0 to 8.0)",
        "4.0 (3.0 to 4.0), aim 3",
        "1.0, 4.0: 0.25, aim 0.33",
        "50 (50 to 80) %, aim 50%",
    ]


def test_answers_are_as_long_as_the_race_says(chat, compute, tiny_model_folder, monkeypatch) -> None:
    engine = local.LocalEngine(chat, compute)
    engine.add("policy", ModelSpec(source=tiny_model_folder("llama"), trainable_layers=1))
    monkeypatch.setattr(local, "Sampler", ours.Fixed)
    monkeypatch.setattr(ours.Fixed, "lengths", (1, 7, 3, 7))
    prompts = [Prompt(str(i), (Message("user", "red " * (i + 1)),)) for i in range(4)]
    answers = {c.prompt.id: c for c in engine.sample("policy", prompts, SamplingParams(1, 1.0, 7))}
    assert [len(answers[p.id].tokens) for p in prompts] == [1, 7, 3, 7]
    assert all(answer.is_finished for answer in answers.values())


def test_the_limit_multiplies_what_the_model_multiplies(tiny_model_folder) -> None:
    folder = tiny_model_folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = model.config.num_hidden_layers
    body = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
    head = model.lm_head.weight.numel()
    work = {
        "group": [0, 1],
        "tokens": [[1] * 5, [1] * 7],
        "is_response": [[False] + [True] * 4, [False] * 7],
        "epochs": 2,
        "kind": "sft",
    }
    products = limit.Products(model.config.to_dict(), torch.float32)

    limit.forward(products, work, layers)
    assert products.multiplied == 2 * (12 * body + 4 * head)

    products.multiplied = 0
    limit.train_sft(products, work, layers)
    assert products.multiplied == 2 * 2 * (3 * 12 * body + 2 * 4 * head)

    products.multiplied = 0
    limit.forward(products, work | {"group": [0, 0], "tokens": [[1] * 5, [1] * 3 + [2] * 4]}, layers)
    assert products.multiplied == 2 * (9 * body + 4 * head), "three of the twelve tokens are shared"

    products.multiplied = 0
    limit.decode(products, {"prompts": [[1] * 3, [1] * 2], "lengths": [1, 4]}, layers)
    assert products.multiplied == 2 * (5 * body + 3 * body + 5 * head)
