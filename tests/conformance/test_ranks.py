"""Several processes give the numbers of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from whelp.config import Recipe
from whelp.engines import launch
from whelp.engines.local import LocalEngine
from whelp.engines.sharded import owners
from whelp.errors import ConfigError
from whelp.types import Sequences


def alone(model: Path, folder: Path, *options: str) -> Any:
    ranks.run(LocalEngine, *ranks.read([str(model), str(folder), *options]))
    return json.loads((folder / "numbers.json").read_text())


def together(size: int, model: Path, folder: Path, *options: str) -> Any:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    ended = subprocess.run(
        [*torchrun, ranks.__file__, model, folder, *options], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-5000:]
    return json.loads((folder / "numbers.json").read_text())


def assert_alike(found: Any, expected: Any, close: float = 1e-5, where: str = "") -> None:
    """Numbers to 1e-5, all else the same."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_alike(found[key], value, close, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_alike(found[i], value, close, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=close, abs=close), where
    else:
        assert found == expected, where


def assert_same_weights(found: Path, expected: Path) -> None:
    one, other = load_file(found), load_file(expected)
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype, name
        torch.testing.assert_close(
            one[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_files(found: Path, expected: Path) -> None:
    files = ("policy/model", "reward/model", "reward/member-1/model", "state/policy", "state/reward", "state/value")
    for file in files:
        assert_same_weights(found / f"{file}.safetensors", expected / f"{file}.safetensors")


def test_two_ranks_give_the_numbers_of_one_process(tiny_model_folder, tmp_path: Path):
    """Uneven shares, a minibatch of one prompt (the other rank has none), an ensemble, a copy of a trained model, answers, files;
    and what is wrong is said once, by the first rank, and ends nothing."""
    model = tiny_model_folder("llama")
    expected = alone(model, tmp_path / "alone")
    assert_alike(together(2, model, tmp_path / "together"), expected)
    assert_same_files(tmp_path / "together", tmp_path / "alone")
    mistakes = expected["mistakes"]
    assert mistakes["unknown"].startswith("copy_of: there is no model 'nobody'")
    assert mistakes["not finite"].startswith("not finite: policy/")
    assert mistakes["after"] == mistakes["before"]


@pytest.mark.proof
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("layers", ["2", "all"])
def test_three_ranks_whatever_the_family(family: str, layers: str, tiny_model_folder, tmp_path: Path):
    model = tiny_model_folder(family)
    expected = alone(model, tmp_path / "alone", "--layers", layers)
    assert_alike(together(3, model, tmp_path / "together", "--layers", layers), expected)
    assert_same_files(tmp_path / "together", tmp_path / "alone")


@pytest.mark.proof
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", ["2", "all"])
def test_ranks_with_adapters(family: str, layers: str, tiny_model_folder, tmp_path: Path):
    """Their base is shared out, they are whole in each process."""
    model, options = tiny_model_folder(family), ("--layers", layers, "--lora", "3")
    expected = alone(model, tmp_path / "alone", *options)
    assert_alike(together(2, model, tmp_path / "together", *options), expected)
    assert_same_files(tmp_path / "together", tmp_path / "alone")


@pytest.mark.proof
def test_a_state_of_two_ranks_goes_on_at_one_and_at_four(tiny_model_folder, tmp_path: Path):
    model, state = tiny_model_folder("llama"), ("--state", str(tmp_path / "two" / "state"))
    together(2, model, tmp_path / "two")
    expected = alone(model, tmp_path / "alone", *state)
    assert expected != json.loads((tmp_path / "two" / "numbers.json").read_text())
    for size in (1, 4):
        assert_alike(together(size, model, tmp_path / str(size), *state), expected)
        assert_same_files(tmp_path / str(size), tmp_path / "alone")


@pytest.mark.proof
def test_ranks_in_bfloat16(tiny_model_folder, tmp_path: Path):
    """What a layer gives is rounded alike; gradients are added up in another order, and in float32 where one process adds
    pieces in bfloat16."""
    model, options = tiny_model_folder("llama"), ("--dtype", "bfloat16")
    expected = alone(model, tmp_path / "alone", *options)
    found = together(2, model, tmp_path / "together", *options)
    assert_alike(found["metrics"][0], expected["metrics"][0], close=2e-2)
    assert load_file(tmp_path / "together/policy/model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_an_engine_of_several_processes_needs_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.maker_of(Recipe()) is LocalEngine
    with pytest.raises(ConfigError, match="engine: fsdp computes in the processes that torchrun starts"):
        launch.maker_of(Recipe(engine="fsdp"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="engine: local is one process, but torchrun started several"):
        launch.maker_of(Recipe(engine="local"))
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "whelp.engines.ray", raising=False)
    with pytest.raises(ConfigError, match="pip install 'whelp\\[ray\\]'"):
        launch.maker_of(Recipe(engine="ray"))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), min_size=1, max_size=30), st.integers(1, 5))
def test_groups_stay_together_and_no_rank_has_much_more_than_another(rows: list[tuple[int, int]], size: int):
    tokens, masks = [(1,) * n for _, n in rows], [(False,) * n for _, n in rows]
    owner = owners(Sequences(tokens, masks, [group for group, _ in rows]), size)
    assert all(len({owner[i] for i, (g, _) in enumerate(rows) if g == group}) == 1 for group in {g for g, _ in rows})
    load = [sum(n for one, (_, n) in zip(owner, rows, strict=True) if one == rank) for rank in range(size)]
    largest = max(sum(n for g, n in rows if g == group) for group, _ in rows)
    assert max(load) - min(load) <= largest
