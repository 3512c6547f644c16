"""The engine of one process against the whole model, plain autograd and torch's own AdamW."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from whelp.engines import local as module
from whelp.engines.base import Engine, Held, ModelSpec, OptimizerSpec, SamplingParams, Term
from whelp.engines.batching import pieces, response_index
from whelp.engines.local import LocalEngine
from whelp.errors import ModelError, RunError, TrainingError
from whelp.maths.outputs import LossSum, Rewards
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets
from whelp.maths.preference import BradleyTerry, PreferenceTargets
from whelp.maths.sft import CrossEntropy, SFTTargets
from whelp.types import Message, Prompt, Sequences

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
LR = 1e-3
STEADY = OptimizerSpec(eps=1e-3)
"""With a small eps Adam blows rounding errors of the smallest gradients up to whole steps."""


def sequences_of(seed: int = 0, vocabulary: int = 290, lengths=(9, 17, 4, 12, 12, 7), group=()) -> Sequences:
    """Random tokens; the last third is response, and in longer ones an earlier turn too."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths]
    masks = [tuple(t >= 2 * n // 3 or (n > 10 and 3 <= t < 5) for t in range(n)) for n in lengths]
    return Sequences(tokens, masks, group)


def response_table(sequences: Sequences) -> torch.Tensor:
    return response_index(sequences.is_response)[2]


def sft_term(name: str, held: Held, coef: float = 1.0) -> Term:
    return Term(name, held, SFTTargets(response_table(held.sequences)), CrossEntropy(), coef)


def weights_of(engine: LocalEngine, name: str) -> dict[str, torch.Tensor]:
    state = {}
    for i, member in enumerate(engine.models[name].members):
        state |= {f"{i}.branch.{k}": v.clone() for k, v in member.branch.state_dict().items()}
        state |= {f"{i}.head.{k}": v.clone() for k, v in member.head.state_dict().items()}
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def engine(chat, compute) -> LocalEngine:
    return LocalEngine(chat, compute)


@pytest.fixture
def build(chat, compute, tiny_model_folder):
    """A fresh engine with one trained model "m"."""

    def make(family="llama", compute=compute, optimizer=STEADY, **spec) -> LocalEngine:
        engine = LocalEngine(chat, compute)
        engine.add(
            "m", ModelSpec(source=tiny_model_folder(family), optimizer=optimizer, **{"trainable_layers": 2, **spec})
        )
        return engine

    return make


# -- pieces ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=30), st.integers(1, 120))
def test_pieces(rows, budget):
    lengths, group = [length for length, _ in rows], [name for _, name in rows]
    found = pieces(lengths, group, budget)
    assert sorted(row for piece in found for row in piece) == list(range(len(rows)))
    for piece in found:
        names = {group[row] for row in piece}
        assert all(row in piece for row in range(len(rows)) if group[row] in names)
        assert len(names) == 1 or len(piece) * max(lengths[row] for row in piece) <= budget


def test_pieces_of_equal_length_are_filled():
    assert [len(piece) for piece in pieces([10] * 10, range(10), 40)] == [4, 4, 2]


def test_response_index():
    rows, positions, table = response_index([(False, True, True), (False, False), (False, True, False, True)])
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 1), (2, 3)]
    assert table.tolist() == [[True, True], [False, False], [True, True]]


# -- scoring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def slow_logprobs(
    model: nn.Module, sequences: Sequences, temperature=1.0
) -> tuple[list[list[float]], list[list[float]]]:
    """One sequence at a time, unpadded, all logits."""
    logprobs, entropies = [], []
    for tokens, mask in zip(sequences.tokens, sequences.is_response, strict=True):
        p = torch.softmax(model(input_ids=torch.tensor([tokens])).logits[0].double() / temperature, -1)
        at = [t for t, flag in enumerate(mask) if flag]
        logprobs.append([math.log(p[t - 1, tokens[t]]) for t in at])
        entropies.append([float(-(p[t - 1] * p[t - 1].log()).sum()) for t in at])
    return logprobs, entropies


@torch.no_grad()
def slow_hidden(model: nn.Module, tokens) -> torch.Tensor:
    return model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0].float()


def assert_rows(table: torch.Tensor, rows: list[list[float]], atol: float = 1e-5) -> None:
    assert table.shape == (len(rows), max(map(len, rows)))
    for found, expected in zip(table, rows, strict=True):
        torch.testing.assert_close(found[: len(expected)], torch.tensor(expected), rtol=1e-5, atol=atol)
        assert not found[len(expected) :].any()


@pytest.mark.parametrize("trainable_layers", [2, "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_entropy(family, trainable_layers, build, tiny_model_folder, whole_model, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_PIECE", 30)
    monkeypatch.setattr(module, "TOKENS_PER_TRAINING_PIECE", 24)
    engine, sequences = build(family, trainable_layers=trainable_layers), sequences_of()
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
def test_values_and_rewards(family, engine, tiny_model_folder, whole_model, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_PIECE", 30)
    monkeypatch.setattr(module, "TOKENS_PER_TRAINING_PIECE", 24)
    folder, sequences = tiny_model_folder(family), sequences_of()
    model = whole_model(folder)
    engine.add("value", ModelSpec(source=folder, head="scalar", trainable_layers=2))
    engine.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=2, members=3, seed=5))
    with engine.hold(sequences) as held:
        values, rewards = engine.values("value", held), engine.rewards("reward", held)
    heads = [m.head.linear.weight[0] for m in engine.models["reward"].members]
    value_head = engine.models["value"].members[0].head.linear.weight[0]
    expected = []
    for b, (tokens, mask) in enumerate(zip(sequences.tokens, sequences.is_response, strict=True)):
        hidden = slow_hidden(model, tokens)
        expected.append([float(hidden[t - 1] @ value_head) for t, flag in enumerate(mask) if flag])
        assert rewards[:, b].tolist() == pytest.approx([float(hidden[-1] @ h) for h in heads], rel=1e-4, abs=1e-4)
    assert_rows(values, expected, atol=1e-4)


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
    rows: list[int] = []
    trunk.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with engine.hold(sequences) as held:
        engine.logprobs("m", held.select([0, 3]))
        engine.logprobs("m", held)
        engine.logprobs("reference", held)
        engine.values("value", held)
        for _ in range(2):
            engine.update([sft_term("m", held)], {"m": LR})
        engine.rewards("value", held.select([5]))
    assert sum(rows) == len(sequences)


def test_what_is_held_is_freed(build):
    engine = build()
    with engine.hold(sequences_of()) as held:
        engine.logprobs("m", held)
        kept = [weakref.ref(t) for rows in held.cache.values() for t in rows]
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


# -- training -------------------------------------------------------------------------------------------------------


class Oracle:
    """The whole model, all its logits, one sequence at a time, torch's own AdamW."""

    def __init__(self, model: nn.Module, spec: OptimizerSpec, trained: list[nn.Module]):
        self.model, self.spec = model.requires_grad_(False), spec
        unique = {id(p): p.requires_grad_(True) for part in trained for p in part.parameters()}
        self.parameters = list(unique.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LR, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
        )

    def step(self, loss: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.max_grad_norm)
        self.optimizer.step()
        return float(norm)

    def logprobs(self, sequences: Sequences) -> list[torch.Tensor]:
        result = []
        for tokens, mask in zip(sequences.tokens, sequences.is_response, strict=True):
            ids = torch.tensor(tokens)
            table = torch.log_softmax(self.model(input_ids=ids[None]).logits[0, :-1], -1)
            result.append(table.gather(1, ids[1:, None]).squeeze(1)[torch.tensor(mask[1:])])
        return result

    def hidden(self, sequences: Sequences) -> list[torch.Tensor]:
        return [self.model.base_model(input_ids=torch.tensor([t])).last_hidden_state[0] for t in sequences.tokens]


OPTIMIZERS = [STEADY, OptimizerSpec((0.8, 0.99), 1e-3, 0.1, max_grad_norm=0.05)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["default", "other"])
def test_sft_of_the_upper_layers(optimizer, build, tiny_model_folder, whole_model, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_TRAINING_PIECE", 30)
    engine, model = build(optimizer=optimizer), whole_model(tiny_model_folder("llama"))
    oracle = Oracle(model, optimizer, [*model.model.layers[2:], model.model.norm])
    for step in range(3):
        sequences = sequences_of(step)
        loss = -torch.cat(oracle.logprobs(sequences)).mean()
        norm = oracle.step(loss)
        with engine.hold(sequences) as held:
            metrics = engine.update([sft_term("m", held)], {"m": LR})
        assert metrics["m/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert metrics["m/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert_trained_alike(engine, model, 2)


def assert_trained_alike(engine: LocalEngine, model: nn.Module, k: int) -> None:
    branch = engine.models["m"].members[0].branch.decoder
    for found, expected in zip(branch.layers, model.base_model.layers[k:], strict=True):
        for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(branch.norm.weight, model.base_model.norm.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_sft_of_everything(family, build, tiny_model_folder, whole_model):
    """llama has a head of its own, qwen2's is tied to the embedding."""
    engine = build(family, trainable_layers="all")
    model = whole_model(tiny_model_folder(family))
    oracle = Oracle(model, STEADY, [model])
    for step in range(3):
        oracle.step(-torch.cat(oracle.logprobs(sequences_of(step))).mean())
        with engine.hold(sequences_of(step)) as held:
            engine.update([sft_term("m", held)], {"m": LR})
    assert_trained_alike(engine, model, 0)
    member = engine.models["m"].members[0]
    torch.testing.assert_close(
        member.branch.decoder.embed_tokens.weight, model.model.embed_tokens.weight, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(member.head.model.lm_head.weight, model.lm_head.weight, rtol=1e-5, atol=1e-6)
    assert (member.head.model.lm_head.weight is member.branch.decoder.embed_tokens.weight) == (family == "qwen2")


def test_policy_and_ptx_are_terms_of_one_model(build, tiny_model_folder, whole_model):
    engine, model = build(), whole_model(tiny_model_folder("llama"))
    oracle = Oracle(model, STEADY, [*model.model.layers[2:], model.model.norm])
    rollout, demonstrations = sequences_of(1), sequences_of(2)
    table = response_table(rollout)
    advantages = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * table
    with engine.hold(rollout) as held, engine.hold(demonstrations) as ptx:
        old = engine.logprobs("m", held).logprobs - 0.1 * torch.randn(
            table.shape, generator=torch.Generator().manual_seed(1)
        )
        policy = torch.cat(oracle.logprobs(rollout))
        ratio = (policy - old[table]).exp()
        surrogate = torch.min(ratio * advantages[table], ratio.clamp(0.8, 1.2) * advantages[table])
        ptx_loss = -torch.cat(oracle.logprobs(demonstrations)).mean()
        oracle.step(-surrogate.mean() + 0.5 * ptx_loss)
        terms = [Term("m", held, PPOTargets(old, advantages, table), PPOLoss(0.2)), sft_term("m", ptx, 0.5)]
        metrics = engine.update(terms, {"m": LR})
    assert_trained_alike(engine, model, 2)
    assert metrics["m/loss"] == pytest.approx(-surrogate.mean().item(), rel=1e-4)
    assert metrics["m/CrossEntropy/loss"] == pytest.approx(ptx_loss.item(), rel=1e-5)


def test_values_are_trained_with_their_head(build, tiny_model_folder, whole_model):
    engine, model = build(head="scalar", seed=3), whole_model(tiny_model_folder("llama"))
    head = nn.Linear(32, 1, bias=False)
    head.weight.data.copy_(engine.models["m"].members[0].head.linear.weight.data)
    oracle = Oracle(model, STEADY, [*model.model.layers[2:], model.model.norm, head])
    sequences = sequences_of()
    table = response_table(sequences)
    returns = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * table
    for _ in range(3):
        rows = zip(oracle.hidden(sequences), sequences.is_response, strict=True)
        before = torch.cat([hidden[:-1][torch.tensor(mask[1:])] for hidden, mask in rows])
        oracle.step(0.5 * ((head(before).squeeze(1) - returns[table]) ** 2).mean())
        with engine.hold(sequences) as held:
            targets = ValueTargets(torch.zeros_like(returns), returns, table)
            engine.update([Term("m", held, targets, ValueLoss(1e6))], {"m": LR})
    assert_trained_alike(engine, model, 2)
    torch.testing.assert_close(engine.models["m"].members[0].head.linear.weight, head.weight, rtol=1e-5, atol=1e-6)


def preference_targets(count: int) -> PreferenceTargets:
    """Groups of two rows: the first is better."""
    rows = torch.arange(count)
    probability = torch.full((count, 2), math.nan)
    probability[0::2, 1], probability[1::2, 0] = 1.0, 0.0
    return PreferenceTargets(rows // 2, rows % 2, probability)


PAIRS = (0, 0, 1, 1, 2, 2)


def test_members_are_trained_as_if_alone(build):
    spec = OptimizerSpec(eps=1e-3, max_grad_norm=1e9)
    together = build(head="scalar", members=2, seed=7, optimizer=spec)
    alone = [build(head="scalar", seed=7 + i, optimizer=spec) for i in range(2)]
    sequences = sequences_of(group=PAIRS)
    for engine in (together, *alone):
        for _ in range(3):
            with engine.hold(sequences) as held:
                engine.update([Term("m", held, preference_targets(6), BradleyTerry())], {"m": LR})
    state = weights_of(together, "m")
    for i, engine in enumerate(alone):
        for name, tensor in weights_of(engine, "m").items():
            torch.testing.assert_close(state[f"{i}{name[1:]}"], tensor, rtol=1e-5, atol=1e-6)
    with together.hold(sequences) as held:
        rewards = together.rewards("m", held)
    assert (rewards[0] - rewards[1]).abs().min() > 1e-4


@pytest.mark.parametrize("kind", ["sft", "preferences"])
def test_weights_do_not_depend_on_how_the_batch_is_cut_into_pieces(kind, build, monkeypatch):
    results = []
    for budget in (10**6, 26):
        monkeypatch.setattr(module, "TOKENS_PER_TRAINING_PIECE", budget)
        engine = build(head="lm" if kind == "sft" else "scalar")
        sequences = sequences_of(group=PAIRS)
        metrics = {}
        with engine.hold(sequences) as held:
            count = len(engine._pieces(held, budget))
            for _ in range(2):
                term = Term("m", held, preference_targets(6), BradleyTerry()) if kind != "sft" else sft_term("m", held)
                metrics = engine.update([term], {"m": LR})
        results.append((count, metrics, weights_of(engine, "m")))
    (one, metrics, weights), (many, other_metrics, other_weights) = results
    assert (one, many) == (1, 3)
    assert metrics == pytest.approx(other_metrics, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(other_weights[name], tensor, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Seen:
    group: torch.Tensor


class Spy:
    """A loss that keeps the groups of every piece."""

    quantity: ClassVar = "rewards"

    def __init__(self):
        self.pieces: list[list[int]] = []

    def count(self, targets: Seen) -> float:
        return float(len(targets.group))

    def __call__(self, outputs: Rewards, targets: Seen) -> LossSum:
        self.pieces.append(targets.group.tolist())
        return LossSum(outputs.rewards.sum())


def test_a_group_is_never_split(build, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_TRAINING_PIECE", 1)
    engine, spy, group = build(head="scalar"), Spy(), (2, 0, 1, 2, 0, 2)
    with engine.hold(sequences_of(group=group)) as held:
        engine.update([Term("m", held, Seen(torch.tensor(group)), spy)], {"m": LR})
    assert sorted(spy.pieces) == [[0, 0], [1], [2, 2, 2]]


def test_lr_is_per_model_and_models_do_not_touch_each_other(build):
    engine = build()
    engine.add("other", ModelSpec(copy_of="m", optimizer=STEADY))
    engine.add("frozen", ModelSpec(copy_of="m"))
    before = weights_of(engine, "m")
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held), sft_term("other", held)], {"m": 0.0, "other": LR})
    assert same(weights_of(engine, "m"), before)
    assert not same(weights_of(engine, "other"), before)
    assert same(weights_of(engine, "frozen"), before)


def test_training_lowers_the_loss(build):
    engine = build()
    with engine.hold(sequences_of()) as held:
        losses = [engine.update([sft_term("m", held)], {"m": 1e-2})["m/loss"] for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_term_without_units_changes_nothing(build):
    engine = build()
    before = weights_of(engine, "m")
    with engine.hold(Sequences([(1, 2, 3)], [(False, False, False)])) as held:
        metrics = engine.update([sft_term("m", held)], {"m": LR})
    assert metrics == {"m/grad_norm": 0.0}
    assert same(weights_of(engine, "m"), before)


# -- refusals -------------------------------------------------------------------------------------------------------


def test_a_frozen_model_is_not_trained(engine, tiny_model_folder):
    engine.add("reference", ModelSpec(source=tiny_model_folder("llama")))
    with engine.hold(sequences_of()) as held, pytest.raises(ModelError, match="'reference' is frozen"):
        engine.update([sft_term("reference", held)], {"reference": LR})


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_nan_changes_no_weight_of_any_model(order, build):
    engine = build()
    engine.add("value", ModelSpec(copy_of="m", head="scalar", optimizer=STEADY))
    sequences = sequences_of()
    table = response_table(sequences)
    returns = torch.zeros(table.shape)
    before = weights_of(engine, "m"), weights_of(engine, "value")
    with engine.hold(sequences) as held:
        bad = Term("value", held, ValueTargets(returns, returns * math.nan, table), ValueLoss())
        terms = [sft_term("m", held), bad]
        with pytest.raises(TrainingError, match=r"not finite: value/.*no weight was changed"):
            engine.update([terms[i] for i in order], {"m": LR, "value": LR})
        assert same(weights_of(engine, "m"), before[0])
        assert same(weights_of(engine, "value"), before[1])
        again = engine.update([sft_term("m", held)], {"m": LR})  # nothing of the bad step is left in the gradients
    fresh = build()
    with fresh.hold(sequences) as held:
        assert fresh.update([sft_term("m", held)], {"m": LR}) == again
    assert same(weights_of(fresh, "m"), weights_of(engine, "m"))


def test_a_nan_in_the_first_of_two_terms_is_not_overlooked(build):
    engine, sequences = build(), sequences_of()
    table = response_table(sequences)
    with engine.hold(sequences) as held:
        bad = PPOTargets(torch.full(table.shape, math.nan), torch.ones(table.shape), table)
        with pytest.raises(TrainingError, match="m/loss"):
            engine.update([Term("m", held, bad, PPOLoss()), sft_term("m", held)], {"m": LR})


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
    engine.add("value", ModelSpec(copy_of="m", head="scalar"))
    with pytest.raises(ModelError, match="'value' has a scalar head"):
        engine.add("y", ModelSpec(copy_of="value", head="lm"))
    assert set(engine.models) == {"m", "value"}


# -- copies, trunks, heads ------------------------------------------------------------------------------------------


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


# -- bf16 -----------------------------------------------------------------------------------------------------------


def test_small_steps_add_up_behind_bf16_weights(build, compute_bf16):
    """A step of 1e-5 on a weight of 0.2 is lost in bf16 (resolution ~1e-3): the fp32 masters remember it."""
    engine = build(compute=compute_bf16)
    branch = engine.models["m"].members[0].branch
    assert {p.dtype for p in branch.parameters()} == {torch.bfloat16}
    before = weights_of(engine, "m")
    with engine.hold(sequences_of()) as held:
        engine.update([sft_term("m", held)], {"m": 1e-5})
        after_one = changed(before, weights_of(engine, "m"))
        for _ in range(59):
            engine.update([sft_term("m", held)], {"m": 1e-5})
    masters = engine.models["m"].weights
    assert {m.dtype for m in masters.masters} == {torch.float32}
    assert {v.dtype for s in masters.optimizer.state.values() for v in s.values()} == {torch.float32}
    assert after_one < 0.05
    assert changed(before, weights_of(engine, "m")) > 0.2
    for master, parameter in zip(masters.masters, masters.compute, strict=True):
        assert torch.equal(master.to(torch.bfloat16), parameter)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    trained = [name for name in before if ".branch." in name]
    moved = sum(int((before[name] != after[name]).sum()) for name in trained)
    return moved / sum(before[name].numel() for name in trained)


def test_bf16_scores_are_fp32_numbers_near_the_exact_ones(build, compute_bf16):
    sequences = sequences_of()
    found = []
    for engine in (build(), build(compute=compute_bf16)):
        with engine.hold(sequences) as held:
            found.append(engine.logprobs("m", held).logprobs)
    assert found[1].dtype == torch.float32
    assert 0 < (found[0] - found[1]).abs().max() < 0.3


def test_bf16_training_follows_fp32_training(build, compute_bf16):
    losses = []
    for engine in (build(), build(compute=compute_bf16)):
        with engine.hold(sequences_of()) as held:
            losses.append([engine.update([sft_term("m", held)], {"m": 3e-3})["m/loss"] for _ in range(10)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


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


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)
