"""Sequences in one flat row: what a group begins with is computed once, nothing is padded, and nothing else changes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from engine_helpers import (
    FAMILIES,
    LR,
    PAIRS,
    assert_rows,
    assert_values_and_rewards,
    preference_targets,
    response_table,
    sft_term,
    slow_logprobs,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st

from whelp.engines.base import ModelSpec, OptimizerSpec, Term
from whelp.engines.batching import PROCESSOR
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.maths.preference import BradleyTerry
from whelp.models import layout, loading
from whelp.models.layout import flat, reads_flat
from whelp.types import Sequences

CPU = torch.device("cpu")


def answers(group=PAIRS, prompt: int = 8, lengths=(5, 9, 1, 12, 7, 3), vocabulary: int = 290) -> Sequences:
    """Random answers; those of a group to one random prompt."""
    generator = torch.Generator().manual_seed(3)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=generator).tolist())

    prompts = {name: some(prompt + name) for name in sorted(set(group))}
    tokens = [prompts[name] + some(length) for name, length in zip(group, lengths, strict=True)]
    masks = [(False,) * len(prompts[name]) + (True,) * length for name, length in zip(group, lengths, strict=True)]
    return Sequences(tokens, masks, group)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(0, 2)), min_size=1, max_size=8)
)
def test_every_token_is_found_again_and_none_stands_there_twice(rows):
    tokens, group = [row for row, _ in rows], [name for _, name in rows]
    found = flat(tokens, group, CPU)
    line = found.join([torch.tensor(row) for row in tokens])[0]
    first = {name: row for row, name in reversed(rows)}
    expected = 0
    for row, name, place in zip(tokens, group, found.place.tolist(), strict=True):
        assert line[place[: len(row)]].tolist() == row
        assert found.positions[place[: len(row)]].tolist() == list(range(len(row)))
        is_first = row is first[name]
        expected += len(row) - (0 if is_first else max(n for n in range(len(row) + 1) if row[:n] == first[name][:n]))
    assert len(line) == len(found.origin) == expected
    width = found.place.shape[1]
    assert [tokens[b][t] for b, t in (divmod(o, width) for o in found.origin.tolist())] == line.tolist()


@pytest.mark.parametrize("trainable_layers", [2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_share_a_prompt_score_as_they_do_alone(
    family, trainable_layers, build, tiny_model_folder, whole_model
):
    engine, sequences = build(family, trainable_layers=trainable_layers), answers()
    assert reads_flat(engine.models["m"].decoder), "or else this tests nothing"
    engine.sizes = replace(engine.sizes, piece=60, training_piece=40)
    with engine.hold(sequences) as held:
        scores = engine.logprobs("m", held)
        part = engine.logprobs("m", held.select([4, 1, 0]))
    logprobs, entropies = slow_logprobs(whole_model(tiny_model_folder(family)), sequences)
    assert_rows(scores.logprobs, logprobs)
    assert_rows(scores.entropy, entropies)
    assert_rows(part.logprobs, [logprobs[row] for row in (4, 1, 0)])


@pytest.mark.parametrize("members", [1, 3])
def test_values_and_rewards_of_answers_that_share_a_prompt(members, chat, compute, tiny_model_folder, whole_model):
    folder, some = tiny_model_folder("llama"), answers()
    twice = Sequences([*some.tokens, *some.tokens[:2]], [*some.is_response, *some.is_response[:2]], (*PAIRS, 0, 0))
    engine, model = LocalEngine(chat, compute), whole_model(folder)
    engine.add("value", ModelSpec(source=folder, head="scalar", trainable_layers=2))
    engine.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=2, members=members, seed=5))
    assert_values_and_rewards(engine, twice, model)


def test_two_threads_learn_the_same_bits_from_answers_to_one_prompt(chat, tiny_model_folder):
    """The last token of a prompt is where several answers' gradients meet: they must be added in one order."""
    folder = tiny_model_folder("llama", hidden_size=256, num_attention_heads=4, num_key_value_heads=2)
    sequences = answers(group=(0,) * 8, lengths=(40,) * 8)
    engine = LocalEngine(chat, Compute(CPU, torch.float32, 2, "tests"))
    found = set()
    try:
        engine.add("m", ModelSpec(source=folder, trainable_layers=1, optimizer=OptimizerSpec()))
        weights = engine.models["m"].weights
        with engine.hold(sequences) as held:
            for _ in range(6):
                weights.zero_grad()
                term = sft_term("m", held)
                engine._accumulate(term, term.loss.count(term.targets), [weights], "m")
                gradients = b"".join(master.grad.numpy().tobytes() for master in weights.masters)
                found.add(hashlib.sha256(gradients).hexdigest())
    finally:
        torch.set_num_threads(1)
    assert len(found) == 1


def test_a_long_sequence_is_not_put_among_short_ones(build):
    """Attention would be computed for each as if it were as long as the longest."""
    engine = build()
    engine.sizes = PROCESSOR
    sequences = answers(group=tuple(range(33)), prompt=1, lengths=(*(15,) * 32, 480))
    with engine.hold(sequences) as held:
        cut = engine._pieces(engine.models["m"].decoder, held, PROCESSOR.training_piece)
    lengths = [len(tokens) for tokens in sequences.tokens]
    assert max(len(rows) * max(lengths[row] for row in rows) for rows in cut) <= 2 * PROCESSOR.training_piece
    assert sorted(row for rows in cut for row in rows) == list(range(33))


def test_a_window_that_is_shorter_than_the_sequences(chat, compute, tiny_model_folder, whole_model):
    folder = tiny_model_folder("mistral", sliding_window=6)
    engine, sequences = LocalEngine(chat, compute), answers()
    engine.add("m", ModelSpec(source=folder, trainable_layers=2))
    assert reads_flat(engine.models["m"].decoder)
    with engine.hold(sequences) as held:
        assert_rows(engine.logprobs("m", held).logprobs, slow_logprobs(whole_model(folder), sequences)[0])


@pytest.mark.parametrize("kind", ["sft", "preferences"])
def test_weights_learn_what_they_learn_from_padded_rows(kind, build, monkeypatch):
    results = []
    for may_be_flat in (True, False):
        if not may_be_flat:
            monkeypatch.setattr(loading, "may_read_flat", lambda model: False)
        engine = build(head="lm" if kind == "sft" else "scalar")
        assert reads_flat(engine.models["m"].decoder) == may_be_flat
        with engine.hold(answers()) as held:
            for _ in range(2):
                term = Term("m", held, preference_targets(6), BradleyTerry()) if kind != "sft" else sft_term("m", held)
                engine.update([term], {"m": LR})
        results.append(weights_of(engine, "m"))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_shared_prompt_is_computed_once_and_nothing_is_padded(build):
    engine, sequences = build(), answers()
    widths: list[int] = []
    layer = engine.models["m"].decoder.layers[0]
    layer.mlp.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[:-1].numel()))
    with engine.hold(sequences) as held:
        engine.logprobs("m", held)
    rows = zip(sequences.group, sequences.tokens, strict=True)
    assert sum(widths) == len({(name, row[:n]) for name, row in rows for n in range(1, len(row) + 1)})
    widths.clear()
    with engine.hold(answers(group=(0, 1, 2, 3, 4, 5))) as held:
        engine.logprobs("m", held)
    assert sum(widths) == sum(8 + name + length for name, length in enumerate((5, 9, 1, 12, 7, 3)))


def test_a_model_that_cannot_read_a_flat_row_is_padded(chat, compute, tiny_model_folder, whole_model, monkeypatch):
    """One that knows of no layout would let every sequence see those before it."""

    def forgetful(*arguments, layout=None, **others):
        return layout_attend(*arguments, **others)

    layout_attend = layout.attend
    monkeypatch.setitem(layout.AttentionInterface._global_mapping, layout.FLAT, forgetful)
    engine, sequences = LocalEngine(chat, compute), answers()
    engine.add("m", ModelSpec(source=tiny_model_folder("llama"), trainable_layers=2))
    assert not reads_flat(engine.models["m"].decoder)
    assert "a flat row differs from its sequences" in engine.models["m"].source.notes[0]
    with engine.hold(sequences) as held:
        scores = engine.logprobs("m", held)
    assert_rows(scores.logprobs, slow_logprobs(whole_model(tiny_model_folder("llama")), sequences)[0])
    assert torch.equal(scores.is_response, response_table(sequences))


def test_a_model_that_attends_otherwise_under_another_name_is_padded(chat, compute, tiny_model_folder, monkeypatch):
    """Some families drop a mask of their own where the attention is not one that they know."""

    def blind_to_the_first(module, query, key, value, mask, layout=None, **others):
        value = torch.cat([torch.zeros_like(value[:, :, :1]), value[:, :, 1:]], 2)
        return layout_attend(module, query, key, value, mask, layout=layout, **others)

    layout_attend = layout.attend
    monkeypatch.setitem(layout.AttentionInterface._global_mapping, layout.FLAT, blind_to_the_first)
    engine = LocalEngine(chat, compute)
    engine.add("m", ModelSpec(source=tiny_model_folder("llama"), trainable_layers=2))
    assert not reads_flat(engine.models["m"].decoder)


def test_an_exported_model_names_no_attention_of_its_own(build, tmp_path):
    engine = build()
    engine.export("m", tmp_path)
    assert layout.FLAT not in (tmp_path / "config.json").read_text()
