"""The models of an engine: which can be added, what copies and equal trunks share, how heads start."""

from __future__ import annotations

import math

import pytest
import torch
from engine_helpers import LR, PAIRS, STEADY, preference_targets, sequences_of, sft_term

from whelp.engines.base import Engine, ModelSpec
from whelp.errors import ModelError
from whelp.maths.outputs import Rewards
from whelp.maths.preference import BradleyTerry


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)


def test_what_cannot_be_added(build, tiny_model_folder):
    engine, folder = build(), tiny_model_folder("llama")
    with pytest.raises(ModelError, match="already has a model 'm'"):
        engine.add("m", ModelSpec(source=folder))
    with pytest.raises(ModelError, match="no model 'x'; the engine has m"):
        engine.add("y", ModelSpec(copy_of="x"))
    with pytest.raises(ModelError, match="source folder or copy_of"):
        engine.add("y", ModelSpec())
    with pytest.raises(ModelError, match="only a scalar head can be an ensemble"):
        engine.add("y", ModelSpec(source=folder, members=2))
    with pytest.raises(ModelError, match="only a scalar head can be an ensemble"):
        engine.add("y", ModelSpec(copy_of="m", members=2))
    for spec in (
        {"source": folder, "head": "scalar"},
        {"copy_of": "m"},
        {"copy_of": "m", "head": "scalar", "members": 2},
    ):
        with pytest.raises(ModelError, match=r"shares_branch: one scalar head|only a scalar head"):
            engine.add("y", ModelSpec(shares_branch=True, **spec))
    engine.add("value", ModelSpec(copy_of="m", head="scalar"))
    with pytest.raises(ModelError, match="'value' has a scalar head"):
        engine.add("y", ModelSpec(copy_of="value", head="lm"))
    assert set(engine.models) == {"m", "value"}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("trainable_layers", [2, "all"])
def test_a_copy_has_weights_of_its_own_and_the_same_trunk(family, trainable_layers, build):
    engine, sequences = build(family, trainable_layers=trainable_layers), sequences_of()
    engine.add("reference", ModelSpec(copy_of="m"))
    with engine.hold(sequences) as held:
        before = engine.logprobs("m", held).logprobs
        assert torch.equal(engine.logprobs("reference", held).logprobs, before)
        engine.update([sft_term("m", held)], {"m": LR})
        assert torch.equal(engine.logprobs("reference", held).logprobs, before)
        assert not torch.equal(engine.logprobs("m", held).logprobs, before)
        engine.add("later", ModelSpec(copy_of="m", optimizer=STEADY))
        assert torch.equal(engine.logprobs("later", held).logprobs, engine.logprobs("m", held).logprobs)
    assert engine.models["m"].trunk is engine.models["reference"].trunk is engine.models["later"].trunk


def test_equal_trunks_are_one_object_and_others_are_not(engine, tiny_model_folder):
    folder = tiny_model_folder("llama")
    engine.add("policy", ModelSpec(source=folder, trainable_layers=2))
    engine.add("reward", ModelSpec(source=folder, trainable_layers=2, head="scalar"))
    engine.add("deeper", ModelSpec(source=folder, trainable_layers=1, head="scalar"))
    engine.add("stranger", ModelSpec(source=tiny_model_folder("llama", seed=1), trainable_layers=2, head="scalar"))
    trunks = [engine.models[name].trunk for name in ("policy", "reward", "deeper", "stranger")]
    first, second = (engine.models[name].source.model.base_model.layers[0] for name in ("policy", "reward"))
    assert first.mlp.up_proj.weight.data_ptr() == second.mlp.up_proj.weight.data_ptr()  # nor is a second one in memory
    assert trunks[0] is trunks[1]
    assert len({id(t) for t in trunks}) == 3
    with engine.hold(sequences_of()) as held:
        engine.logprobs("policy", held)
        engine.rewards("stranger", held)
        assert set(held.cache) == {trunks[0].key, trunks[3].key}


def test_whole_models_of_different_width(engine, tiny_model_folder):
    engine.add("small", ModelSpec(source=tiny_model_folder("llama"), trainable_layers="all"))
    engine.add("large", ModelSpec(source=tiny_model_folder("llama", hidden_size=48), trainable_layers="all"))
    engine.add("value", ModelSpec(copy_of="large", head="scalar"))
    with engine.hold(sequences_of()) as held:
        assert engine.values("value", held).isfinite().all()


def test_fresh_heads(engine, tiny_model_folder):
    folder = tiny_model_folder("llama")
    engine.add("default", ModelSpec(source=folder, head="scalar", seed=2))
    engine.add("again", ModelSpec(source=folder, head="scalar", seed=2))
    engine.add("other", ModelSpec(source=folder, head="scalar", seed=3))
    engine.add("zero", ModelSpec(source=folder, head="scalar", head_std=0.0))
    engine.add(
        "wide", ModelSpec(source=tiny_model_folder("llama", hidden_size=2048, num_hidden_layers=1), head="scalar")
    )
    weight = {name: model.members[0].head.linear.weight for name, model in engine.models.items()}
    assert torch.equal(weight["default"], weight["again"])
    assert not torch.equal(weight["default"], weight["other"])
    assert float(weight["wide"].std()) == pytest.approx(1 / math.sqrt(2049), rel=0.1)
    with engine.hold(sequences_of(group=PAIRS)) as held:
        rewards = engine.rewards("zero", held)
    loss = BradleyTerry()(Rewards(rewards), preference_targets(6)).loss / 3
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_a_critic_starts_from_the_reward_model_or_anew(build):
    engine = build(head="scalar", seed=1)
    engine.add("value", ModelSpec(copy_of="m", head="scalar"))
    engine.add("fresh", ModelSpec(copy_of="m", head="scalar", fresh_head=True, seed=9))
    weight = {name: model.members[0].head.linear.weight for name, model in engine.models.items()}
    assert torch.equal(weight["m"], weight["value"])
    assert weight["m"] is not weight["value"]
    assert not torch.equal(weight["m"], weight["fresh"])


def test_an_ensemble_copied_from_a_policy_has_its_members(build):
    engine = build()
    engine.add("reward", ModelSpec(copy_of="m", head="scalar", members=3, seed=4))
    heads = [m.head.linear.weight for m in engine.models["reward"].members]
    assert len(heads) == 3
    assert len({tuple(h.flatten().tolist()) for h in heads}) == 3
    engine.add("again", ModelSpec(copy_of="reward", head="scalar", members=3))
    for found, head in zip(engine.models["again"].members, heads, strict=True):
        assert torch.equal(found.head.linear.weight, head)
        assert found.head.linear.weight is not head


def test_a_model_that_is_let_go_is_gone(build):
    engine = build()
    engine.add("other", ModelSpec(copy_of="m"))
    engine.remove("other")
    assert list(engine.models) == ["m"]
    with pytest.raises(ModelError, match="no model 'other' to remove; it has m"):
        engine.remove("other")
