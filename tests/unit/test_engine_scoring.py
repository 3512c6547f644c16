"""What the engine scores and samples, against the whole model one sequence at a time."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from engine_helpers import (
    FAMILIES,
    LR,
    assert_rows,
    assert_values_and_rewards,
    response_table,
    sequences_of,
    sft_term,
    slow_logprobs,
)

from whelp.engines.base import ModelSpec, SamplingParams
from whelp.engines.local import LocalEngine
from whelp.types import Message, Prompt, Sequences

# -- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable_layers", [2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_entropy(family, trainable_layers, build, tiny_model_folder, whole_model):
    engine, sequences = build(family, trainable_layers=trainable_layers), sequences_of()
    engine.sizes = replace(engine.sizes, piece=30, training_piece=24)
    with engine.hold(sequences) as held:
        scores = engine.logprobs("m", held)
    logprobs, entropies = slow_logprobs(whole_model(tiny_model_folder(family)), sequences)
    assert_rows(scores.logprobs, logprobs)
    assert_rows(scores.entropy, entropies)
    assert torch.equal(scores.is_response, response_table(sequences))


def test_logprobs_at_another_temperature_in_chunks(chat, compute, tiny_model_folder, whole_model, monkeypatch):
    from whelp.engines import scoring

    monkeypatch.setattr(scoring, "CHUNK", 5)
    engine, sequences = LocalEngine(chat, compute, temperature=0.7), sequences_of()
    engine.add("m", ModelSpec(source=tiny_model_folder("llama"), trainable_layers=2))
    with engine.hold(sequences) as held:
        assert_rows(
            engine.logprobs("m", held).logprobs,
            slow_logprobs(whole_model(tiny_model_folder("llama")), sequences, 0.7)[0],
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_rewards(family, engine, tiny_model_folder, whole_model):
    engine.sizes = replace(engine.sizes, piece=30, training_piece=24)
    folder, sequences = tiny_model_folder(family), sequences_of()
    model = whole_model(folder)
    engine.add("value", ModelSpec(source=folder, head="scalar", trainable_layers=2))
    engine.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=2, members=3, seed=5))
    assert_values_and_rewards(engine, sequences, model)


def test_a_selection_is_the_same_rows(build):
    engine, sequences = build(), sequences_of()
    with engine.hold(sequences) as held:
        part = engine.logprobs("m", held.select([4, 1]).select([1, 0]))
        whole = engine.logprobs("m", held)
    width = part.logprobs.shape[1]
    torch.testing.assert_close(part.logprobs, whole.logprobs[[1, 4], :width])


def test_the_trunk_runs_once_for_all_roles_and_epochs(build):
    engine, sequences = build(), sequences_of()
    engine.add("reference", ModelSpec(copy_of="m"))
    engine.add("value", ModelSpec(copy_of="m", head="scalar"))
    trunk = engine.models["m"].trunk
    tokens: list[int] = []
    trunk.register_forward_pre_hook(lambda _, args: tokens.append(args[0].numel()))
    with engine.hold(sequences) as held:
        engine.logprobs("m", held.select([0, 3]))
        engine.logprobs("m", held)
        engine.logprobs("reference", held)
        engine.values("value", held)
        for _ in range(2):
            engine.update([sft_term("m", held)], {"m": LR})
        engine.rewards("value", held.select([5]))
    assert sum(tokens) == sum(map(len, sequences.tokens))


def test_what_is_held_is_freed(build):
    engine = build()
    with engine.hold(sequences_of()) as held:
        engine.logprobs("m", held)
        kept = [weakref.ref(t) for rows in held.cache.values() for t in rows.values()]
        assert kept
    gc.collect()
    assert not any(ref() is not None for ref in kept)


def test_an_empty_batch(build):
    engine = build()
    with engine.hold(Sequences([], [])) as held:
        assert engine.logprobs("m", held).logprobs.shape == (0, 0)
        assert engine.values("m", held).shape == (0, 0)


def test_a_sequence_without_a_response(build):
    engine = build()
    with engine.hold(Sequences([(1, 2, 3), (4, 5)], [(False, False, True), (False, False)])) as held:
        scores = engine.logprobs("m", held)
    assert scores.is_response.tolist() == [[True], [False]]
    assert scores.logprobs[1, 0] == 0


# -- sampling -------------------------------------------------------------------------------------------------------


def test_completions(engine, chat, tiny_model_folder):
    engine.add("m", ModelSpec(source=tiny_model_folder("llama")))
    prompts = [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["Hello", "How are you today?"])]
    found = list(engine.sample("m", prompts, SamplingParams(n=3, max_new_tokens=40)))
    assert sorted((c.prompt.id, c.sample) for c in found) == [(p.id, s) for p in prompts for s in range(3)]
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for c in found:
        assert c.is_finished == (c.tokens[-1] == end)
        assert c.text == chat.tokenizer.decode(list(c.tokens), skip_special_tokens=True)
        rendered = chat.completion(chat.prompt(c.prompt), c.tokens)
        with engine.hold(Sequences([rendered.tokens], [rendered.is_response])) as held:
            torch.testing.assert_close(
                engine.logprobs("m", held).logprobs[0], torch.tensor(c.logprobs), rtol=1e-5, atol=1e-5
            )


def test_the_sampler_sees_an_update_at_once(build):
    engine = build()
    prompt = [Prompt("p", (Message("user", "Hello"),))]
    engine.add("before", ModelSpec(copy_of="m"))
    with engine.hold(sequences_of()) as held:
        for _ in range(5):
            engine.update([sft_term("m", held)], {"m": 0.1})
    (before,) = engine.sample("before", prompt, SamplingParams(max_new_tokens=10))
    (after,) = engine.sample("m", prompt, SamplingParams(max_new_tokens=10))
    assert before.logprobs != after.logprobs
