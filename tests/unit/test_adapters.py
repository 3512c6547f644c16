"""Adapters beside weights that stay as they are: how they begin, learn, are copied, saved and merged."""

from __future__ import annotations

import sys

import pytest
import torch
from engine_helpers import (
    FAMILIES,
    PAIRS,
    STEADY,
    assert_rows,
    preference_targets,
    same,
    sequences_of,
    sft_term,
    slow_logprobs,
    weights_of,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from whelp.engines.base import ModelSpec, SamplingParams, Term
from whelp.engines.local import LocalEngine
from whelp.errors import ModelError
from whelp.maths.preference import BradleyTerry
from whelp.models.adapters import LoRA, adapters_of
from whelp.types import Message, Prompt

THIN = LoRA(rank=3, alpha=6.0)
RATE = 1e-2


def branch(engine: LocalEngine, name: str, member: int = 0) -> torch.nn.Module:
    return engine.models[name].members[member].branch


def base_weights(engine: LocalEngine, name: str, member: int = 0) -> dict[str, torch.nn.Parameter]:
    adapters = adapters_of(branch(engine, name, member))
    return {key: p for key, p in branch(engine, name, member).named_parameters() if key not in adapters}


def learn(engine: LocalEngine, name: str, seed: int = 0, steps: int = 3) -> dict[str, float]:
    metrics = {}
    with engine.hold(sequences_of(seed)) as held:
        for _ in range(steps):
            metrics = engine.update([sft_term(name, held)], {name: RATE})
    return metrics


@pytest.mark.parametrize("layers", [2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_adapters_begins_as_its_base_and_leaves_that_alone(family, layers, build):
    engine = build(family, trainable_layers=layers, lora=THIN)
    engine.add("reference", ModelSpec(copy_of="m", trainable_layers=layers, lora=THIN))
    plain, sequences = build(family, trainable_layers=layers, optimizer=None), sequences_of()
    with engine.hold(sequences) as held, plain.hold(sequences) as beside:
        expected = plain.logprobs("m", beside).logprobs
        for name in ("m", "reference"):
            torch.testing.assert_close(engine.logprobs(name, held).logprobs, expected, rtol=1e-5, atol=1e-6)
        before = {name: weight.clone() for name, weight in base_weights(engine, "m").items()}
        losses = [engine.update([sft_term("m", held)], {"m": RATE})["m/loss"] for _ in range(5)]
        assert losses[-1] < losses[0] - 0.05
        torch.testing.assert_close(engine.logprobs("reference", held).logprobs, expected, rtol=1e-5, atol=1e-6)
        assert (engine.logprobs("m", held).logprobs - expected).abs().max() > 1e-2
    assert same(dict(base_weights(engine, "m")), before)


@pytest.mark.parametrize("layers", [2, "all"])
def test_policy_reference_critic_and_sampler_read_one_set_of_weights(layers, build):
    engine = build(trainable_layers=layers, lora=THIN)
    engine.add("reference", ModelSpec(copy_of="m", trainable_layers=layers, lora=THIN))
    engine.add(
        "value", ModelSpec(copy_of="m", head="scalar", trainable_layers=layers, lora=THIN, optimizer=STEADY, seed=1)
    )
    places = [
        {key: p.data_ptr() for key, p in base_weights(engine, name).items()} for name in ("m", "reference", "value")
    ]
    assert places[0] == places[1] == places[2]
    assert engine.models["m"].members[0].head is engine.models["reference"].members[0].head
    own = [{p.data_ptr() for p in adapters_of(branch(engine, name)).values()} for name in ("m", "value")]
    assert not own[0] & own[1]
    assert len(engine.models["m"].weights.masters) == len(adapters_of(branch(engine, "m")))
    learn(engine, "m")  # frozen models that are read beside adapters stay in memory
    assert engine.models["reference"].mapped is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own affair
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_three_steps_are_those_of_peft_and_torch(family, build, tiny_model_folder):
    """The oracle: the whole model with peft's adapters, one sequence at a time, and torch's AdamW."""
    engine, sequences = build(family, trainable_layers="all", lora=THIN), sequences_of()
    whole = AutoModelForCausalLM.from_pretrained(tiny_model_folder(family), dtype=torch.float32)
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules="all-linear", fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM"
    )
    peer = get_peft_model(whole, config).train(False)
    theirs = {
        name.removeprefix("base_model.model.").split(".", 1)[1]: p
        for name, p in peer.named_parameters()
        if "lora_" in name
    }
    ours = {name.removeprefix("decoder."): p for name, p in adapters_of(branch(engine, "m")).items()}
    assert ours.keys() == theirs.keys()
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(ours[name])
    optimizer = torch.optim.AdamW(
        theirs.values(), lr=RATE, betas=STEADY.betas, eps=STEADY.eps, weight_decay=STEADY.weight_decay
    )
    count = sum(map(sum, sequences.is_response))
    for _ in range(3):
        optimizer.zero_grad()
        for tokens, mask in zip(sequences.tokens, sequences.is_response, strict=True):
            row = torch.tensor([tokens])
            logprobs = peer(input_ids=row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
            (-(logprobs * torch.tensor(mask[1:])).sum() / count).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), STEADY.max_grad_norm)
        optimizer.step()
    learn(engine, "m")
    for name, p in theirs.items():
        torch.testing.assert_close(ours[name], p, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("layers", [2, "all"])
def test_an_exported_model_has_them_merged(family, layers, build, tiny_model_folder, tmp_path):
    engine, sequences = build(family, trainable_layers=layers, lora=THIN), sequences_of()
    learn(engine, "m")
    engine.export("m", tmp_path / "made")
    found = load_file(tmp_path / "made" / "model.safetensors")
    base = load_file(tiny_model_folder(family) / "model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in base.items()}
    moved = {name for name, tensor in found.items() if not torch.equal(tensor, base[name])}
    assert moved
    assert not any("embed" in name or "norm" in name or "wte" in name or "ln_" in name for name in moved)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    with engine.hold(sequences) as held:
        assert_rows(engine.logprobs("m", held).logprobs, slow_logprobs(whole, sequences)[0], atol=2e-5)


def test_a_sampler_draws_from_what_was_learned(build, tmp_path):
    engine = build(lora=THIN)
    learn(engine, "m", steps=8)
    engine.export("m", tmp_path / "made")
    engine.add("whole", ModelSpec(tmp_path / "made", trainable_layers=2))
    prompts = [Prompt(f"p{i}", (Message("user", "hello there"),)) for i in range(3)]
    drawn = [
        sorted((c.prompt.id, c.tokens) for c in engine.sample(name, prompts, SamplingParams(1, 1.0, 8)))
        for name in ("m", "whole")
    ]
    assert drawn[0] == drawn[1]


def test_a_loaded_state_goes_on_bit_for_bit(build, tmp_path):
    straight = build(lora=THIN)
    learn(straight, "m")
    straight.save_state(tmp_path)
    size = sum(
        tensor.numel() for name, tensor in load_file(tmp_path / "m.safetensors").items() if name.startswith("weight.")
    )
    assert size == sum(p.numel() for p in adapters_of(branch(straight, "m")).values())
    resumed = build(lora=THIN)
    resumed.load_state(tmp_path)
    assert learn(resumed, "m", seed=2) == learn(straight, "m", seed=2)
    assert same(weights_of(resumed, "m"), weights_of(straight, "m"))


def test_masters_of_adapters_are_fp32_where_the_model_is_bf16(build, compute_bf16):
    engine = build(lora=THIN, compute=compute_bf16)
    learn(engine, "m")
    assert {master.dtype for master in engine.models["m"].weights.masters} == {torch.float32}
    assert {p.dtype for p in branch(engine, "m").parameters()} == {torch.bfloat16}


def test_members_of_an_ensemble_share_their_base_and_learn_apart(engine, tiny_model_folder, tmp_path):
    spec = ModelSpec(
        tiny_model_folder("llama"), head="scalar", members=3, trainable_layers=2, lora=THIN, optimizer=STEADY
    )
    engine.add("reward", spec)
    places = [{key: p.data_ptr() for key, p in base_weights(engine, "reward", i).items()} for i in range(3)]
    assert places[0] == places[1] == places[2]
    with engine.hold(sequences_of(group=PAIRS)) as held:
        term = Term("reward", held, preference_targets(6), BradleyTerry())
        for _ in range(3):
            engine.update([term], {"reward": RATE})
        rewards = engine.rewards("reward", held)
        assert (rewards[:, 0::2] > rewards[:, 1::2]).all()
        first = [next(iter(adapters_of(branch(engine, "reward", i)).values())) for i in range(3)]
        assert not torch.equal(first[0], first[1])
        engine.export("reward", tmp_path / "made")
        again = ModelSpec(tmp_path / "made", head="scalar", members=3, trainable_layers=2, lora=THIN, optimizer=STEADY)
        engine.add("again", again)  # members that lie in the folder have weights of their own
        torch.testing.assert_close(engine.rewards("again", held), rewards, rtol=1e-4, atol=1e-5)


def test_a_copy_of_what_has_learned_goes_on_from_there(build):
    engine = build(lora=THIN)
    learn(engine, "m")
    engine.add("later", ModelSpec(copy_of="m", trainable_layers=2, lora=THIN, optimizer=STEADY))
    with engine.hold(sequences_of()) as held:
        at = engine.logprobs("m", held).logprobs
        assert torch.equal(engine.logprobs("later", held).logprobs, at)
        learn(engine, "m")
        assert torch.equal(engine.logprobs("later", held).logprobs, at)
        assert not torch.equal(engine.logprobs("m", held).logprobs, at)


def test_adapters_are_drawn_with_the_seed_and_disturb_no_other_draw(build):
    engines, following = [], []
    for lora, seed in ((None, 0), (THIN, 0), (THIN, 0), (THIN, 1)):
        torch.manual_seed(5)
        engines.append(build(lora=lora, seed=seed))
        following.append(torch.rand(1))
    assert len(set(map(float, following))) == 1
    engines = engines[1:]
    drawn = [torch.cat([p.flatten() for p in adapters_of(branch(e, "m")).values()]) for e in engines]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_cannot_be(build, monkeypatch):
    with_adapters, whole = build(lora=THIN), build()
    with pytest.raises(ModelError, match="adapters \\(lora\\) are for 'm' and its copy, or for neither"):
        with_adapters.add("copy", ModelSpec(copy_of="m", trainable_layers=2))
    with pytest.raises(ModelError, match="adapters \\(lora\\) are for 'm' and its copy, or for neither"):
        whole.add("copy", ModelSpec(copy_of="m", trainable_layers=2, lora=THIN, optimizer=STEADY))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match='pip install "whelp\\[lora\\]", or set lora_rank=0'):
        build(lora=THIN)
