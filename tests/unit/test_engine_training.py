"""The engine's steps against plain autograd and torch's own AdamW, in fp32 and behind bf16 weights."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from engine_helpers import (
    LR,
    PAIRS,
    STEADY,
    preference_targets,
    response_table,
    same,
    sequences_of,
    sft_term,
    weights_of,
)
from torch import nn

from whelp.engines.base import ModelSpec, OptimizerSpec, Term
from whelp.engines.batching import targets_beside
from whelp.engines.local import LocalEngine
from whelp.errors import ModelError, TrainingError
from whelp.maths.outputs import LossSum, Rewards, TokenScores
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets
from whelp.maths.preference import BradleyTerry, DPOLoss, DPOTargets
from whelp.types import Sequences

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

    def before_responses(self, sequences: Sequences) -> torch.Tensor:
        """Hidden states of the tokens before each response token, where values are read [N H]."""
        rows = zip(self.hidden(sequences), sequences.is_response, strict=True)
        return torch.cat([hidden[:-1][torch.tensor(mask[1:])] for hidden, mask in rows])

    def hidden(self, sequences: Sequences) -> list[torch.Tensor]:
        return [self.model.base_model(input_ids=torch.tensor([t])).last_hidden_state[0] for t in sequences.tokens]


OPTIMIZERS = [STEADY, OptimizerSpec((0.8, 0.99), 1e-3, 0.1, max_grad_norm=0.05)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["default", "other"])
def test_sft_of_the_upper_layers(optimizer, build, tiny_model_folder, whole_model):
    engine, model = build(optimizer=optimizer), whole_model(tiny_model_folder("llama"))
    engine.sizes = replace(engine.sizes, training_piece=30)
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
        before = oracle.before_responses(sequences)
        oracle.step(0.5 * ((head(before).squeeze(1) - returns[table]) ** 2).mean())
        with engine.hold(sequences) as held:
            targets = ValueTargets(torch.zeros_like(returns), returns, table)
            engine.update([Term("m", held, targets, ValueLoss(1e6))], {"m": LR})
    assert_trained_alike(engine, model, 2)
    torch.testing.assert_close(engine.models["m"].members[0].head.linear.weight, head.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [("m", "v"), ("v", "m")])
def test_a_shared_critic_moves_the_policys_layers(order, build, tiny_model_folder, whole_model):
    """The layers learn from both losses, the critic's weighed; its head from its own alone, with an optimizer of its own."""
    engine, model = build(), whole_model(tiny_model_folder("llama"))
    engine.add("v", ModelSpec(copy_of="m", shares_branch=True, head="scalar", optimizer=STEADY, seed=3))
    assert engine.models["v"].members[0].branch is engine.models["m"].members[0].branch
    head = nn.Linear(32, 1, bias=False)
    head.weight.data.copy_(engine.models["v"].members[0].head.linear.weight.data)
    oracle = Oracle(model, STEADY, [*model.model.layers[2:], model.model.norm])
    head_optimizer = torch.optim.AdamW(
        head.parameters(), lr=2 * LR, betas=STEADY.betas, eps=STEADY.eps, weight_decay=0.0
    )
    sequences = sequences_of()
    table = response_table(sequences)
    returns = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * table
    for _ in range(3):
        before = oracle.before_responses(sequences)
        value_loss = 0.5 * ((head(before).squeeze(1) - returns[table]) ** 2).mean()
        head_optimizer.zero_grad()
        oracle.step(-torch.cat(oracle.logprobs(sequences)).mean() + 0.3 * value_loss)
        nn.utils.clip_grad_norm_(head.parameters(), STEADY.max_grad_norm)
        head_optimizer.step()
        with engine.hold(sequences) as held:
            targets = ValueTargets(torch.zeros_like(returns), returns, table)
            terms = {"m": sft_term("m", held), "v": Term("v", held, targets, ValueLoss(1e6), 0.3)}
            engine.update([terms[name] for name in order], {"m": LR, "v": 2 * LR})
    assert_trained_alike(engine, model, 2)
    torch.testing.assert_close(engine.models["v"].members[0].head.linear.weight, head.weight, rtol=1e-5, atol=1e-6)


def test_a_shared_critic_alone_moves_its_head_only(build):
    engine = build()
    engine.add("v", ModelSpec(copy_of="m", shares_branch=True, head="scalar", head_std=0.0, optimizer=STEADY))
    policy, critic = weights_of(engine, "m"), weights_of(engine, "v")
    sequences = sequences_of()
    table = response_table(sequences)
    with engine.hold(sequences) as held:
        engine.update([Term("v", held, ValueTargets(0.0 * table, 1.0 * table, table), ValueLoss(1e6))], {"v": LR})
        assert same(policy, weights_of(engine, "m"))
        assert not same(critic, weights_of(engine, "v"))
        alone = build()
        for each in (engine, alone):  # nothing of the critic's gradient waits for the policy's next step
            with each.hold(sequences) as own:
                each.update([sft_term("m", own)], {"m": LR})
    assert same(weights_of(engine, "m"), weights_of(alone, "m"))


def test_a_shared_critic_behind_bf16_weights(build, compute_bf16):
    """Its gradients reach the policy's fp32 masters piece by piece."""
    moved = []
    for coef in (0.0, 5.0):
        engine = build(compute=compute_bf16)
        engine.add("v", ModelSpec(copy_of="m", shares_branch=True, head="scalar", optimizer=STEADY))
        sequences = sequences_of()
        table = response_table(sequences)
        targets = ValueTargets(0.0 * table, 9.0 * table, table)
        with engine.hold(sequences) as held:
            terms = [sft_term("m", held), Term("v", held, targets, ValueLoss(1e6), coef)]
            metrics = engine.update(terms, {"m": LR, "v": LR})
        moved.append(metrics["m/grad_norm"])
    assert moved[1] > 1.5 * moved[0]


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


@pytest.mark.parametrize("max_grad_norm", [1e9, 0.1])
def test_each_member_learns_from_rows_of_its_own(max_grad_norm, build):
    """Of three, two learn from different pairs in one step, each as if alone, and one from nothing."""
    spec = OptimizerSpec(eps=1e-3, max_grad_norm=max_grad_norm)
    together = build(head="scalar", members=3, seed=7, optimizer=spec)
    before = weights_of(together, "m")
    rows = {0: [0, 1, 2, 3], 2: [4, 5]}
    with together.hold(sequences_of(group=PAIRS)) as held:
        terms = [
            Term("m", held.select(mine), preference_targets(len(mine)), BradleyTerry(), member=member)
            for member, mine in rows.items()
        ]
        metrics = together.update(terms, {"m": LR})
    assert {"m/member-0/loss", "m/member-2/loss"} < metrics.keys()
    assert metrics["m/grad_norm"] > 0.1, "the smaller norm clips"
    after = weights_of(together, "m")
    for member, mine in rows.items():
        engine = build(head="scalar", seed=7 + member, optimizer=spec)
        with engine.hold(sequences_of(group=PAIRS)) as held:
            engine.update([Term("m", held.select(mine), preference_targets(len(mine)), BradleyTerry())], {"m": LR})
        for name, tensor in weights_of(engine, "m").items():
            torch.testing.assert_close(after[f"{member}{name[1:]}"], tensor, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("1."))


@pytest.mark.parametrize("kind", ["sft", "preferences"])
def test_weights_do_not_depend_on_how_the_batch_is_cut_into_pieces(kind, build):
    results = []
    for budget in (10**6, 26):
        engine = build(head="lm" if kind == "sft" else "scalar")
        engine.sizes = replace(engine.sizes, training_piece=budget)
        sequences = sequences_of(group=PAIRS)
        metrics = {}
        with engine.hold(sequences) as held:
            count = len(engine._pieces(engine.models["m"].decoder, held, budget))
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


def test_a_group_is_never_split(build):
    engine, spy, group = build(head="scalar"), Spy(), (2, 0, 1, 2, 0, 2)
    engine.sizes = replace(engine.sizes, training_piece=1)
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


def test_a_table_of_comparisons_is_not_cut_to_the_words_of_short_answers():
    """Four answers of one token: a table of four columns stands beside outputs that are one token wide."""
    probability = torch.full((4, 4), torch.nan)
    probability[0, 1:], probability[1:, 0] = 1.0, 0.0
    targets = DPOTargets(
        torch.zeros(4, dtype=torch.long),
        torch.arange(4),
        probability,
        *torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4),
    )
    outputs = TokenScores(torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.bool))
    chosen = targets_beside(outputs, targets, [0, 1, 2, 3])
    assert chosen.probability.shape == (4, 4)
    assert float(DPOLoss()(outputs, chosen).loss) == pytest.approx(math.log(2), rel=1e-5)


def test_all_targets_move_beside_the_outputs():
    targets = DPOTargets(torch.zeros(2, dtype=torch.long), torch.arange(2), torch.zeros(2, 2), *torch.zeros(3, 2))
    elsewhere = TokenScores(torch.zeros(2, 3, device="meta"), torch.ones(2, 3, dtype=torch.bool, device="meta"))
    chosen = targets_beside(elsewhere, targets, [0, 1])
    assert {getattr(chosen, field.name).device.type for field in dataclasses.fields(chosen)} == {"meta"}
