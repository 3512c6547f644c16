"""Frozen weights that lie in a file, gradients that keep their places, and smaller pieces through many layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_helpers import LR, same, sequences_of, sft_term, weights_of
from torch import nn

from whelp.engines.base import ModelSpec, OptimizerSpec
from whelp.engines.mapped import MappedWeights
from whelp.engines.master import MasterWeights


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHELP_CACHE", str(tmp_path / "cache"))


def resident_kb(tensor: torch.Tensor) -> int:
    """Memory that the mapping around a tensor's first byte has now."""
    at, is_inside = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and ":" not in head:
            start, end = (int(one, 16) for one in head.split("-"))
            is_inside = start <= at < end
        elif is_inside and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("no mapping holds it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mapped_weights_are_the_same_and_rest(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(300, 500), nn.Linear(500, 7)]).to(dtype).requires_grad_(False)
    module[1].weight = nn.Parameter(module[1].weight, requires_grad=False)
    before = copy.deepcopy(module.state_dict())
    mapped = MappedWeights(module)
    assert list((tmp_path / "cache").iterdir()) == [], "the file has no name"
    assert same(dict(module.state_dict()), dict(before))
    size = sum(p.numel() * p.element_size() for p in module.parameters()) / 1024
    assert resident_kb(module[0].weight) >= size * 0.99
    mapped.rest()
    assert resident_kb(module[0].weight) == 0
    assert same(dict(module.state_dict()), dict(before)), "they are read from the file again"


def test_a_tied_weight_stays_tied() -> None:
    module = nn.ModuleList([nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)]).requires_grad_(False)
    module[1].weight = module[0].weight
    MappedWeights(module)
    assert module[1].weight is module[0].weight


def test_whole_frozen_models_are_mapped_where_others_learn(build) -> None:
    """And compute the same, before and after, as does a copy that learns."""
    engine = build(trainable_layers="all")
    engine.add("reference", ModelSpec(copy_of="m", trainable_layers="all"))
    sequences = sequences_of()
    with engine.hold(sequences) as held:
        first = engine.logprobs("reference", held).logprobs
        assert engine.models["reference"].mapped is None, "nothing learns yet"
        weights = weights_of(engine, "reference")
        engine.update([sft_term("m", held)], {"m": LR})
        assert engine.models["reference"].mapped is not None
        assert engine.models["m"].mapped is None
        assert torch.equal(engine.logprobs("reference", held).logprobs, first)
        engine.update([sft_term("m", held)], {"m": LR})
    assert same(weights_of(engine, "reference"), weights)
    engine.add("again", ModelSpec(copy_of="reference", trainable_layers="all", optimizer=OptimizerSpec()))
    with engine.hold(sequences) as held:
        engine.update([sft_term("again", held)], {"again": LR})
    assert not same(weights_of(engine, "again"), weights)
    assert same(weights_of(engine, "reference"), weights)


def test_models_on_a_shared_trunk_are_not_mapped(build) -> None:
    engine = build()
    engine.add("reference", ModelSpec(copy_of="m"))
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": LR})
    assert [model.mapped for model in engine.models.values()] == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_keep_their_places_and_what_has_none_is_left_alone(dtype: torch.dtype) -> None:
    """Against AdamW, whose gradients are made anew each step."""
    torch.manual_seed(0)
    used, unused = nn.Linear(5, 3).to(dtype), nn.Linear(5, 3).to(dtype)
    spec = OptimizerSpec(weight_decay=0.1)
    oracle = [copy.deepcopy(used).float(), copy.deepcopy(unused).float()]
    parameters = [p for module in oracle for p in module.parameters()]
    adam = torch.optim.AdamW(parameters, lr=LR, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    weights = MasterWeights([used, unused], spec)
    places = [gradient.data_ptr() for gradient in weights.gradients]
    for step in range(4):
        modules = [used] if step % 2 else [used, unused]
        inputs = torch.randn(6, 5)
        weights.zero_grad()
        adam.zero_grad()
        for piece in inputs.split(2):
            sum(module(piece.to(dtype)).float().square().sum() for module in modules).backward()
            weights.collect()
        sum(oracle[[used, unused].index(m)](inputs).square().sum() for m in modules).backward()
        torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], spec.max_grad_norm)
        weights.clip()
        before = [master.detach().clone() for master in weights.masters]
        weights.step(LR)
        adam.step()
        if step % 2:
            assert all(torch.equal(a, b) for a, b in zip(before[2:], weights.masters[2:], strict=True))
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3
    for found, expected in zip(weights.masters, parameters, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert [gradient.data_ptr() for gradient in weights.gradients] == places


def test_a_model_that_was_trained_is_let_go_of(build) -> None:
    """Nothing that hangs on its gradients keeps it."""
    import gc
    import weakref

    engine = build()
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": LR})
    weight = weakref.ref(engine.models["m"].weights.masters[0])
    gc.disable()
    try:
        engine.remove("m")
        assert weight() is None
    finally:
        gc.enable()


def test_pieces_are_smaller_through_more_layers(build, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    engine = build(trainable_layers="all")
    engine.sizes = replace(engine.sizes, training_piece=40, training_depth=2)
    real = engine._pieces
    monkeypatch.setattr(engine, "_pieces", lambda *a: asked.append(a[-1]) or real(*a))
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": LR})
    assert asked[0] == 20, "four layers are twice as deep"
    asked.clear()
    engine.sizes = replace(engine.sizes, training_depth=4)
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": LR})
    assert asked[0] == 40
