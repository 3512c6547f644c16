"""The scripts in benchmarks/ are run by hand: here it is seen that they still fit what they import, and explain themselves."""

from __future__ import annotations

import re
import runpy
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
NO_SCRIPTS = ("peer_trl", "exact_gradient", "environments")
"""One runs where whelp is not, the others are what several share."""
SCRIPTS = sorted(script for script in FOLDER.glob("*.py") if script.stem not in NO_SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_a_script_says_what_it_does(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_enumerated_gradient_is_that_of_the_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against central differences: a model whose next token depends on the last one alone, answers of at most two of three
    tokens, the first of which ends one."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from exact_gradient import kl_gradient, log_probabilities

    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    prompts, answers = [[1], [2, 2]], [(0,), *(pair for pair in product(range(3), repeat=2) if pair[0] != 0)]

    def model(table: torch.Tensor):
        return lambda tokens: SimpleNamespace(logits=table[tokens])

    def kl(table: torch.Tensor) -> float:
        rows = [[log_probabilities(model(t), p, answers, 0) for t in (table, reference)] for p in prompts]
        return sum(float((p.exp() * (p - q)).sum()) for p, q in rows) / len(prompts)

    (found,) = kl_gradient(model(policy.requires_grad_()), model(reference), [policy], prompts, answers, 0)
    policy.requires_grad_(False)
    for place in product(range(3), repeat=2):
        nudge = torch.zeros_like(policy)
        nudge[place] = 1e-6
        assert float(found[place]) == pytest.approx((kl(policy + nudge) - kl(policy - nudge)) / 2e-6, abs=1e-8)
    total = log_probabilities(model(policy), prompts[0], answers, 0).exp().sum()
    assert float(total) == pytest.approx(1.0)


def test_the_area_under_the_curve_counts_pairs_and_its_interval_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from ensemble import area_under_roc

    draw = torch.Generator().manual_seed(0)
    above = (torch.randn(60, generator=draw) + 0.7).round(decimals=1)
    below = torch.randn(60, generator=draw).round(decimals=1)  # rounded: some are equal, which counts half
    wins = sum(1.0 * (a > b) + 0.5 * (a == b) for a in above.tolist() for b in below.tolist())
    found = area_under_roc(above, below)
    assert found.mean == pytest.approx(wins / 60**2)
    assert 0.5 < found.low < found.mean < found.high < 1
    assert area_under_roc(below, below.clone()).mean == pytest.approx(0.5)


def test_texts_of_the_manual_are_whole_sentences_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from ensemble import length_matched, manual

    sentences, lengths = manual(), [12, 40, 7, 80, 25] * 20
    texts = length_matched(sentences, lengths)
    assert len(set(texts)) == len(texts)
    for text, length in zip(texts, lengths, strict=True):
        assert text[0].isupper() and text[-1] in ".:"
        assert set(re.split(r"(?<=[.:]) (?=[A-Z])", text)) <= set(sentences)
        assert len(text.split()) == pytest.approx(length, rel=0.4, abs=4)
    assert sum(len(text.split()) for text in texts) == pytest.approx(sum(lengths), rel=0.05)
