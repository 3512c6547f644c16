"""The activations that the cross-validation on human pairs keeps on disk are those that the trunk would make again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from engine_helpers import sequences_of

from whelp.engines.base import ModelSpec

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
