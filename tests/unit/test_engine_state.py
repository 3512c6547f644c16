"""A state saved and loaded goes on bit for bit; an exported model is the trained one."""

from __future__ import annotations

import copy

import pytest
import torch
from engine_helpers import (
    FAMILIES,
    LR,
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
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from whelp.engines.base import ModelSpec, Term
from whelp.engines.local import LocalEngine
from whelp.errors import ModelError, RunError
from whelp.maths.posterior import head_posterior
from whelp.maths.preference import BradleyTerry
from whelp.models.loading import load_source, load_tokenizer
from whelp.text.chat import Chat, sequences
from whelp.types import Message, Prompt

# -- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loaded_state_goes_on_bit_for_bit(precision, build, compute, compute_bf16, tmp_path):
    number = compute if precision == "fp32" else compute_bf16

    def step(engine, seed):
        with engine.hold(sequences_of(seed)) as held:
            return engine.update([sft_term("m", held)], {"m": LR})

    straight = build(compute=number)
    for seed in range(2):
        step(straight, seed)
    straight.save_state(tmp_path)
    resumed = build(compute=number)
    step(resumed, 99)  # what was there before is forgotten
    resumed.load_state(tmp_path)
    assert same(weights_of(resumed, "m"), weights_of(straight, "m"))
    for seed in (2, 3):
        assert step(resumed, seed) == step(straight, seed)
    assert same(weights_of(resumed, "m"), weights_of(straight, "m"))


def test_a_state_from_before_the_first_step(build, tmp_path):
    fresh, used = build(), build()
    fresh.save_state(tmp_path)
    with used.hold(sequences_of(1)) as held:
        used.update([sft_term("m", held)], {"m": LR})
    used.load_state(tmp_path)
    for engine in (fresh, used):
        with engine.hold(sequences_of(2)) as held:
            engine.update([sft_term("m", held)], {"m": LR})
    assert same(weights_of(fresh, "m"), weights_of(used, "m"))


@pytest.mark.parametrize("damage", ["missing", "another model", "fewer layers", "more layers", "broken"])
def test_a_state_that_does_not_fit(damage, build, chat, compute, tiny_model_folder, tmp_path):
    if damage == "another model":
        other = LocalEngine(chat, compute)
        other.add(
            "m", ModelSpec(tiny_model_folder("llama", intermediate_size=40), trainable_layers=2, optimizer=STEADY)
        )
        other.save_state(tmp_path)
    elif damage.endswith("layers"):
        build(trainable_layers=1 if damage == "fewer layers" else 3).save_state(tmp_path)
    elif damage == "broken":
        (tmp_path / "m.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    engine = build()
    before = weights_of(engine, "m")
    with pytest.raises(RunError, match=r"m\.safetensors does not hold the state of 'm'"):
        engine.load_state(tmp_path)
    assert same(weights_of(engine, "m"), before)


# -- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable_layers", [2, "all"])
def test_a_trained_policy_is_exported_as_it_is(family, trainable_layers, build, whole_model, tmp_path):
    engine, sequences = build(family, trainable_layers=trainable_layers), sequences_of()
    engine.add("reference", ModelSpec(copy_of="m"))
    with engine.hold(sequences) as held:
        for _ in range(2):
            engine.update([sft_term("m", held)], {"m": 1e-2})
        expected = engine.logprobs("m", held).logprobs
        reference = engine.logprobs("reference", held).logprobs
    engine.export("m", tmp_path / "m")
    engine.export("reference", tmp_path / "reference")
    assert (expected - reference).abs().max() > 0.1
    for table, name in ((expected, "m"), (reference, "reference")):
        assert_rows(table, slow_logprobs(whole_model(tmp_path / name), sequences)[0])


def test_all_layers_train_a_tied_embedding_and_export_it(build, whole_model, tmp_path):
    engine = build("qwen2", trainable_layers="all")
    member = engine.models["m"].members[0]
    before = member.branch.decoder.embed_tokens.weight.detach().clone()
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": LR})
    engine.export("m", tmp_path / "m")
    model = whole_model(tmp_path / "m")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.model.embed_tokens.weight, before)
    assert torch.equal(model.model.embed_tokens.weight, member.branch.decoder.embed_tokens.weight)


def test_an_exported_ensemble_comes_back_scaled_by_its_gain(build, engine, tmp_path):
    trained, sequences = build(head="scalar", members=2, seed=7), sequences_of(group=PAIRS)
    with trained.hold(sequences) as held:
        trained.update([Term("m", held, preference_targets(6), BradleyTerry())], {"m": LR})
        expected = 1.5 * trained.rewards("m", held)
    trained.export("m", tmp_path / "reward", gain=1.5, reward_shift=0.5)
    engine.add("reward", ModelSpec(source=tmp_path / "reward", head="scalar", trainable_layers=2, members=2))
    with engine.hold(sequences) as held:
        torch.testing.assert_close(engine.rewards("reward", held), expected, rtol=1e-5, atol=1e-5)
    assert engine.models["reward"].source.config.reward_shift == 0.5
    engine.add(
        "anew", ModelSpec(source=tmp_path / "reward", head="scalar", trainable_layers=2, fresh_head=True, head_std=0.0)
    )
    with engine.hold(sequences) as held:
        assert not engine.rewards("anew", held).any()


def test_what_a_reward_model_is_sure_of_goes_with_it(build, engine, compute, tmp_path):
    """Fitted on the last tokens' hidden states, in the unit of the exported score, whole and in any order of rows."""
    sequences, answers = sequences_of(lengths=(9, 17, 4, 12, 12, 7)), sequences_of(seed=1, lengths=(5, 11, 8))
    trained = build(head="scalar", members=2, seed=7)
    with trained.hold(sequences) as learned, trained.hold(answers) as held:
        assert not trained.reward_variance("m", held).any(), "nothing was fitted"
        trained.fit_posterior("m", learned.select([4, 0, 2, 5]), pairs=20)
        found, swapped = trained.reward_variance("m", held), trained.reward_variance("m", held.select([2, 0]))
    assert found.shape == (2, 3)
    torch.testing.assert_close(swapped, found[:, [2, 0]])
    trained.export("m", tmp_path / "reward", gain=1.5)

    for i in range(2):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
        if i:
            model.load_state_dict(load_file(tmp_path / "reward" / "member-1" / "model.safetensors"), strict=False)

        def last_hidden(tokens, model=model):
            with torch.no_grad():
                return model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]

        posterior = head_posterior(torch.stack([last_hidden(sequences.tokens[r]) for r in (4, 0, 2, 5)]), 20)
        expected = [float(posterior.variance(last_hidden(tokens))) for tokens in answers.tokens]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-3)

    engine.add("reward", ModelSpec(source=tmp_path / "reward", head="scalar", trainable_layers=2, members=2))
    engine.add("copy", ModelSpec(copy_of="reward", head="scalar", members=2))
    engine.add("anew", ModelSpec(source=tmp_path / "reward", head="scalar", trainable_layers=2, fresh_head=True))
    with engine.hold(answers) as held:
        for name in ("reward", "copy"):
            torch.testing.assert_close(engine.reward_variance(name, held), 1.5**2 * found, rtol=1e-4, atol=1e-6)
        assert not engine.reward_variance("anew", held).any(), "another head is sure of nothing that this one was"

    save_file({"mean": torch.zeros(3), "root": torch.eye(3)}, tmp_path / "reward" / "posterior.safetensors")
    with pytest.raises(ModelError, match=r"posterior.safetensors holds .*\(3, 3\).* expected mean and root of a head"):
        load_source(tmp_path / "reward", "scalar", compute, 2)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("behind", ["", "\n"])
def test_transformers_scores_a_conversation_by_the_exported_template(
    behind, members, compute, tiny_model_folder, tiny_tokenizer, tmp_path
):
    """Some templates put a newline behind the last turn, and a classifier reads the last token."""
    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder("qwen2")).save_pretrained(source)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>' }}", f"'<|im_end|>{behind}' }}}}")
    tokenizer.save_pretrained(source)
    engine = LocalEngine(Chat(load_tokenizer(source)), compute)
    spec = ModelSpec(source=source, head="scalar", trainable_layers=2, optimizer=STEADY, members=members, seed=3)
    engine.add("m", spec)
    prompt = Prompt("p", (Message("user", "hello there"),))
    answers = ["I am fine.", "how are you today?"]
    with engine.hold(sequences([engine.chat.answer(prompt, text) for text in answers], (0, 0))) as held:
        engine.update([Term("m", held, preference_targets(2), BradleyTerry())], {"m": LR})
        expected = 1.5 * engine.rewards("m", held)
    engine.export("m", tmp_path / "reward", gain=1.5)

    exported = AutoTokenizer.from_pretrained(tmp_path / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    for text, score in zip(answers, expected[0].tolist(), strict=True):
        turns = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": text}]
        inputs = exported.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            found = float(model(**inputs).logits)
        assert found == pytest.approx(score, abs=1e-4)
    asked = exported.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert abs(float(expected[0, 0] - expected[0, 1])) > 1e-3
