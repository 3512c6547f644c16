"""On a CUDA device the engine says and learns what it says and learns on a processor. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import LR, PAIRS, preference_targets, sequences_of, sft_term, weights_of

from whelp.engines.base import SamplingParams, Term
from whelp.engines.devices import Compute
from whelp.maths.preference import BradleyTerry
from whelp.types import Message, Prompt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def cuda() -> Compute:
    return Compute(torch.device("cuda"), torch.float32, 1, "tests")


@pytest.mark.parametrize("trainable_layers", [2, "all"])
def test_it_scores_as_a_processor_does(build, cuda, trainable_layers):
    here, there = (build(trainable_layers=trainable_layers, **where) for where in ({}, {"compute": cuda}))
    with here.hold(sequences_of()) as mine, there.hold(sequences_of()) as theirs:
        expected, found = here.logprobs("m", mine), there.logprobs("m", theirs)
    assert found.logprobs.device.type == "cpu"
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-4, atol=1e-4)


def test_it_samples_what_a_processor_samples(build, cuda):
    prompts = [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["hello", "how are you today"])]
    params = SamplingParams(n=3, max_new_tokens=8, key=("cuda",))
    found = []
    for where in ({}, {"compute": cuda}):
        sampled = build(**where).sample("m", prompts, params)
        found.append({(c.prompt.id, c.sample): c.tokens for c in sampled})
    assert found[0] == found[1]


@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_it_learns_what_a_processor_learns_and_goes_on_from_a_saved_state(build, cuda, tmp_path, head):
    def step(engine, seed):
        with engine.hold(sequences_of(seed, group=PAIRS)) as held:
            term = sft_term("m", held) if head == "lm" else Term("m", held, preference_targets(6), BradleyTerry())
            engine.update([term], {"m": LR})

    here, there = build(head=head), build(head=head, compute=cuda)
    for engine in (here, there):
        step(engine, 0)
    there.save_state(tmp_path)
    resumed = build(head=head, compute=cuda)
    resumed.load_state(tmp_path)
    for engine in (here, there, resumed):
        step(engine, 1)
    expected = weights_of(here, "m")
    for engine in (there, resumed):
        for name, tensor in weights_of(engine, "m").items():
            torch.testing.assert_close(tensor.cpu(), expected[name], rtol=1e-3, atol=1e-4)
