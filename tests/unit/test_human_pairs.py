"""The activations that the cross-validation on human pairs keeps on disk are those that the trunk would make again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_helpers import sequences_of

from whelp.engines.base import ModelSpec
from whelp.runs.files import write_json_atomic
from whelp.types import Message, Prompt, Ranking

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
human_pairs = pytest.importorskip("human_pairs", reason="benchmarks/ lies beside tests/")


def engine_with(chat, compute, folder: Path):
    engine = human_pairs.DiskEngine(chat, compute)
    engine.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=1))
    return engine


def test_a_second_pass_reads_what_the_first_one_wrote(chat, compute, tiny_model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(human_pairs, "RUNS", tmp_path)
    folder, sequences = tiny_model_folder("llama"), sequences_of()
    plain = human_pairs.LocalEngine(chat, compute)
    plain.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=1))
    with plain.hold(sequences) as held:
        expected = plain.rewards("reward", held)

    first = engine_with(chat, compute, folder)
    with first.hold(sequences) as held:
        assert torch.allclose(first.rewards("reward", held), expected, atol=2e-3)

    second = engine_with(chat, compute, folder)
    next(iter(second.trunks.values())).forward = None  # it is not to be run again
    with second.hold(sequences.select([3, 1, 5])) as held:
        assert torch.allclose(second.rewards("reward", held), expected[:, [3, 1, 5]], atol=2e-3)


def test_an_index_line_that_was_cut_off_is_made_again(tmp_path) -> None:
    store = human_pairs.Store(tmp_path, width=4)
    hidden = torch.randn(3, 4)
    store.put((1, 2, 3), hidden)
    store.put((7,), torch.zeros(1, 4))
    (tmp_path / "index").write_text((tmp_path / "index").read_text()[:-3])

    again = human_pairs.Store(tmp_path, width=4)

    assert list(again.places) == [human_pairs.name_of((1, 2, 3))]
    again.put((7,), torch.ones(1, 4))
    again = human_pairs.Store(tmp_path, width=4)
    assert torch.equal(again.get((7,)), torch.ones(1, 4))
    assert torch.allclose(again.get((1, 2, 3)), hidden, atol=2e-3)


def said(*turns: str, source: str = "a") -> Ranking:
    roles = ("user", "assistant") * len(turns)
    messages = tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))
    return Ranking(Prompt(" ".join(turns), messages), ("yes", "no"), (1, 2), source)


def test_conversations_that_begin_alike_are_in_one_fold_whatever_their_file():
    again = [
        said("How are you?"),
        said("how  are YOU?", "Fine.", "Really?", source="b"),
        said("How are you?", source="c"),
    ]
    assert len({human_pairs.fold_of(ranking) for ranking in again}) == 1
    others = {human_pairs.fold_of(said(f"question {i}")) for i in range(60)}
    assert others == set(range(human_pairs.FOLDS))


def test_a_pair_in_two_files_counts_once():
    pairs = {"x": [said("a"), said("b")], "y": [said("b"), said("c")]}
    assert [ranking.prompt.text for ranking in human_pairs.united(pairs, ["x", "y"])] == ["a", "b", "c"]


def test_a_row_of_the_table_counts_who_is_right_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(human_pairs, "RECORDS", tmp_path)
    trial = human_pairs.Trial("t", "a trial")
    write_json_atomic(
        trial.record("helpful", 0),
        {
            "first": list("abcdef"),
            "margin": [1, 1, 1, 1, -1, 1],
            "surface": [-1, -1, -1, 1, 1, 0],
            "length": [1] * 6,
            "seconds": 120,
        },
    )
    pairs, model, surface, length, gain, counts, time = human_pairs.row(trial, "helpful", [0])
    assert (pairs, time) == ("6", "2 min")
    assert (model[:3], surface[:3], length[:4]) == ("83%", "42%", "100%")
    assert gain.startswith("+41.7")
    assert counts == "4 : 1, p = 0.38", "of 5 pairs 4: 2 * (C(5,4) + C(5,5)) / 2^5"
