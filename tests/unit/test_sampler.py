"""What the sampler says it drew, against the whole model; and that it drew from the right distribution."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import GenerationConfig

from whelp.engines import sampler as module
from whelp.engines.base import SamplingParams
from whelp.engines.batching import PROCESSOR, Sizes
from whelp.engines.sampler import Sampled, Sampler, draw, uniforms
from whelp.models.trunk import cut

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
LENGTHS = (3, 11, 7, 20, 5)
"""Of the prompts: shorter and longer than the tiny models' windows of 6 and 8."""


def prompts_of(vocabulary: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(11)
    return [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in LENGTHS]


def names_of(prompts) -> list[str]:
    return [f"prompt-{i}" for i in range(len(prompts))]


def make(model, compute, end_ids=(), trainable_layers=2, sizes=PROCESSOR) -> Sampler:
    parts = cut(model, trainable_layers, with_head=True)
    return Sampler(parts.trunk, parts.branch, parts.head, tuple(end_ids), compute, sizes)


def collect(sampler: Sampler, prompts, params: SamplingParams, names=None) -> dict[tuple[str, int], Sampled]:
    names = names or names_of(prompts)
    found = [(names[s.prompt], s.sample, s) for s in sampler.sample(prompts, names, params)]
    table = {(name, sample): s for name, sample, s in found}
    assert len(table) == len(found) == len(prompts) * params.n
    return table


@torch.no_grad()
def full_pass(model, prompt, tokens, temperature=1.0) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits / temperature, -1)


@pytest.fixture
def few(monkeypatch) -> Sizes:
    """Four rows at a time, two of them refilled together, and little prefilled at once."""
    monkeypatch.setattr(module, "REFILL", 2)
    return replace(PROCESSOR, slots=4, training_piece=30)


@pytest.fixture(scope="module")
def llama(tiny_model_folder, whole_model):
    return whole_model(tiny_model_folder("llama"))


# -- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable_layers", [2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_a_full_pass(
    family, trainable_layers, tiny_model_folder, whole_model, compute, few
):
    model = whole_model(tiny_model_folder(family))
    prompts = prompts_of(model.config.vocab_size)
    sampler = make(model, compute, end_ids=range(30), trainable_layers=trainable_layers, sizes=few)
    found = collect(sampler, prompts, SamplingParams(n=3, max_new_tokens=14))
    for sampled in found.values():
        expected = full_pass(model, prompts[sampled.prompt], sampled.tokens)
        expected = expected.gather(1, torch.tensor(sampled.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(sampled.logprobs), expected, rtol=1e-5, atol=1e-5)
    assert {len(s.tokens) for s in found.values()} > {14}  # some ended early, so rows were moved and refilled


def test_sampled_logprobs_in_bf16(tiny_model_folder, whole_model, compute_bf16, few):
    model = whole_model(tiny_model_folder("llama"), torch.bfloat16)
    prompts = prompts_of(model.config.vocab_size)
    found = collect(make(model, compute_bf16, sizes=few), prompts, SamplingParams(n=2, max_new_tokens=10))
    for sampled in found.values():
        expected = full_pass(model, prompts[sampled.prompt], sampled.tokens)
        expected = expected.gather(1, torch.tensor(sampled.tokens)[:, None]).squeeze(1)
        assert (torch.tensor(sampled.logprobs) - expected).abs().max() < 0.25


def test_the_temperature_divides_the_logits(llama, compute):
    prompts = prompts_of(llama.config.vocab_size)
    for sampled in collect(make(llama, compute), prompts, SamplingParams(temperature=0.7, max_new_tokens=6)).values():
        expected = full_pass(llama, prompts[sampled.prompt], sampled.tokens, 0.7)
        expected = expected.gather(1, torch.tensor(sampled.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(sampled.logprobs), expected, rtol=1e-5, atol=1e-5)


# -- greedy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_an_argmax_loop_and_what_transformers_generates(family, tiny_model_folder, whole_model, compute, few):
    model = whole_model(tiny_model_folder(family))
    prompts = prompts_of(model.config.vocab_size)
    end = frozenset(range(60))
    params = SamplingParams(temperature=0.0, max_new_tokens=12)
    found = collect(make(model, compute, end, sizes=few), prompts, params)
    generation = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=sorted(end), pad_token_id=299)
    for i, prompt in enumerate(prompts):
        sampled = found[(f"prompt-{i}", 0)]
        assert list(sampled.tokens) == slow_greedy(model, prompt, end, 12)
        ids = torch.tensor([prompt])
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
        assert list(sampled.tokens) == generated[0, len(prompt) :].tolist()


@torch.no_grad()
def slow_greedy(model, prompt, end, count) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < count and not (tokens and tokens[-1] in end):
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


# -- where answers end ----------------------------------------------------------------------------------------------


def test_an_answer_ends_at_the_first_end_id_and_keeps_it(llama, compute, few):
    end = set(range(0, 300, 12))
    found = collect(
        make(llama, compute, end, sizes=few), prompts_of(300), SamplingParams(n=6, max_new_tokens=15)
    ).values()
    for sampled in found:
        assert not end & set(sampled.tokens[:-1])
        assert sampled.is_finished == (sampled.tokens[-1] in end)
        assert len(sampled.tokens) == len(sampled.logprobs)
        assert sampled.is_finished or len(sampled.tokens) == 15
    assert {s.is_finished for s in found} == {True, False}


@pytest.mark.parametrize("count", [1, 2, 9])
def test_max_new_tokens(count, llama, compute):
    found = collect(make(llama, compute), prompts_of(300), SamplingParams(n=2, max_new_tokens=count))
    assert {len(s.tokens) for s in found.values()} == {count}


def test_an_end_id_at_the_limit_is_a_finished_answer(llama, compute):
    found = collect(make(llama, compute, range(300)), prompts_of(300), SamplingParams(max_new_tokens=1))
    assert all(s.is_finished and len(s.tokens) == 1 for s in found.values())


def test_no_prompts_no_answers(llama, compute):
    assert list(make(llama, compute).sample([], [], SamplingParams())) == []


# -- the same draws -------------------------------------------------------------------------------------------------


def test_the_same_draws_in_another_order_with_other_slots_and_another_cut(llama, compute, monkeypatch):
    prompts, params = prompts_of(300), SamplingParams(n=3, max_new_tokens=10, key=(4, "x"))
    names = names_of(prompts)
    expected = {k: s.tokens for k, s in collect(make(llama, compute, range(20)), prompts, params).items()}
    for slots, refill, layers in ((64, 8, "all"), (1, 1, 2), (2, 8, 1), (5, 3, 3)):
        monkeypatch.setattr(module, "REFILL", refill)
        order = [3, 0, 4, 2, 1]
        sampler = make(llama, compute, range(20), layers, replace(PROCESSOR, slots=slots))
        found = collect(sampler, [prompts[i] for i in order], params, [names[i] for i in order])
        assert {k: s.tokens for k, s in found.items()} == expected


def test_fewer_samples_and_fewer_tokens_are_the_beginning_of_more(llama, compute):
    prompts = prompts_of(300)
    sampler = make(llama, compute)
    more = collect(sampler, prompts, SamplingParams(n=3, max_new_tokens=9))
    for key, sampled in collect(sampler, prompts, SamplingParams(n=2, max_new_tokens=4)).items():
        assert sampled.tokens == more[key].tokens[:4]


def test_another_key_draws_otherwise(llama, compute):
    sampler, prompts = make(llama, compute), prompts_of(300)
    one, again, two = (
        {k: s.tokens for k, s in collect(sampler, prompts, SamplingParams(max_new_tokens=6, key=key)).items()}
        for key in ((1, 1), (1, 1), (1, 2))
    )
    assert one == again
    assert all(one[k] != two[k] for k in one)
    samples = collect(sampler, prompts[:1], SamplingParams(n=4, max_new_tokens=6))
    assert len({s.tokens for s in samples.values()}) == 4


def test_the_sampler_draws_from_the_weights_as_they_are_now(tiny_model_folder, whole_model, compute):
    model = whole_model(tiny_model_folder("llama"))
    sampler, prompts = make(model, compute), prompts_of(300)
    collect(sampler, prompts, SamplingParams(max_new_tokens=5))
    with torch.no_grad():
        for parameter in sampler.parts.branch.parameters():
            parameter.mul_(1.5)
    for sampled in collect(sampler, prompts, SamplingParams(max_new_tokens=5)).values():
        expected = full_pass(model, prompts[sampled.prompt], sampled.tokens)
        expected = expected.gather(1, torch.tensor(sampled.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(sampled.logprobs), expected, rtol=1e-5, atol=1e-5)


def test_the_completions_of_a_prompt_share_one_prefill(llama, compute):
    sampler = make(llama, compute)
    seen: list[tuple[int, ...]] = []
    sampler.parts.branch.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    collect(sampler, prompts_of(300), SamplingParams(n=8, max_new_tokens=2))
    assert seen == [(5, max(LENGTHS)), (40, 1)]


def test_no_more_rows_than_slots(llama, compute, few):
    sampler = make(llama, compute, range(40), sizes=few)
    seen: list[int] = []
    sampler.parts.branch.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    collect(sampler, prompts_of(300), SamplingParams(n=5, max_new_tokens=12))
    assert max(seen) == 4


# -- the draw itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5, -1.0])
    count = 20_000
    u = torch.rand(count, generator=torch.Generator().manual_seed(2))
    tokens, logprobs = draw(logits.expand(count, -1), u, temperature)
    p = torch.softmax(logits.double() / temperature, 0).numpy()
    result = scipy.stats.chisquare(np.bincount(tokens.numpy(), minlength=6), count * p / p.sum())
    assert result.pvalue > 1e-3
    np.testing.assert_allclose(logprobs.numpy(), np.log(p)[tokens.numpy()], rtol=1e-5, atol=1e-6)


def test_a_large_vocabulary_keeps_its_tail():
    """Half of the mass lies in 50,000 rare tokens: none may be lost to rounding."""
    logits = torch.zeros(1, 50_001)
    logits[0, 0] = np.log(50_000.0)
    u = torch.linspace(0, 1, 201)[:-1]
    tokens, _ = draw(logits.expand(200, -1), u, 1.0)
    expected = np.where(u < 0.5, 0, 1 + np.floor((u.double().numpy() - 0.5) * 100_000))
    assert np.abs(tokens.numpy() - expected).max() <= 2


def test_the_ends_of_the_unit_interval():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]])
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    for u, token in ((torch.tensor(0.0), 1), (last, 3)):
        found, logprob = draw(logits, u[None], 1.0)
        assert found.tolist() == [token]
        assert logprob.isfinite().all()


def test_what_has_no_probability_is_not_drawn():
    logits = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    logits[:, ::2] = -torch.inf
    u = torch.rand(2000, generator=torch.Generator().manual_seed(1))
    tokens, _ = draw(logits, u, 1.0)
    assert (tokens % 2 == 1).all()


def test_uniforms_are_named_by_key_prompt_and_sample():
    def names():
        for key in ((0,), (0, 1), ("0",)):
            for prompt in ("a", "b"):
                for sample in (0, 1):
                    yield key, prompt, sample

    drawn = [uniforms(*name, 50) for name in names()]
    assert len({tuple(u) for u in drawn}) == len(drawn)
    assert all(np.array_equal(uniforms(*name, 20), u[:20]) for name, u in zip(names(), drawn, strict=True))
    assert all(a.dtype == np.float32 and (a >= 0).all() and (a < 1).all() for a in drawn)
    together = np.concatenate(drawn)
    assert scipy.stats.kstest(together, "uniform").pvalue > 1e-3
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in pairwise(drawn)) < 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_gives_the_tokens_that_sampling_gives(temperature, llama, compute):
    prompts = prompts_of(llama.config.vocab_size)
    params = SamplingParams(3, temperature, 12, ("s",))
    ends = range(0, llama.config.vocab_size, 12)
    sampled = collect(make(llama, compute, ends), prompts, params)
    for name, prompt in zip(names_of(prompts), prompts, strict=True):
        streamed = list(make(llama, compute, ends).stream(prompt, name, params))
        for s in range(params.n):
            assert tuple(token for sample, token in streamed if sample == s) == sampled[name, s].tokens
    if temperature:
        assert {s.is_finished for s in sampled.values()} == {True, False}
