"""Where every answer can be enumerated the optimum is known: PPO must go there, and log the truth on its way.

The oracle is the closed form of `exact_world`, over all answers. Only the recipe differs from a real run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_world import (
    BATCH,
    World,
    log_probabilities,
    log_probabilities_in,
    make_chat,
    save_model,
    spread,
    total_variation,
    train,
)
from mistakes import OF_THE_OPTIMUM
from torch import Tensor

from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.runs.metrics import MetricsLog
from whelp.stages import ppo
from whelp.text.chat import Chat

Record = Callable[[str, float], None]
"""pytest's `record_property`: what is shown beside the proof."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return make_chat()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, chat: Chat) -> Callable[[int], Path]:
    """`source(seed)`: the folder of the model that training starts from."""

    def make(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("world")
        save_model(folder, chat, seed)
        return folder

    return make


@dataclass
class Exact:
    """What the logged numbers of one iteration estimate, by enumeration, with the standard errors of a batch's means."""

    step: int
    kl: float
    kl_error: float
    leashed: float
    leashed_error: float


@dataclass
class Journey:
    """One training: distributions over all answers, before and after [4 133], and what was true and logged on its way."""

    world: World
    log_ref: Tensor
    log_pi: Tensor
    exact: list[Exact]
    logged: list[dict[str, Any]]

    @property
    def log_star(self) -> Tensor:
        return self.world.optimum(self.log_ref)


def journey(
    source: Path, chat: Chat, compute: Compute, where: Path, kl_coef: float, seed: int, **recipe: int
) -> Journey:
    world = World.random(seed, kl_coef)
    exact: list[Exact] = []
    seen, batch = 0, int(recipe.get("batch_size", BATCH))

    def watch(engine: LocalEngine) -> None:
        nonlocal seen
        seen += 1
        if seen % 10 != 1:
            return
        log_pi, log_ref = log_probabilities(engine, "policy"), log_probabilities(engine, "reference")
        leashed = world.leashed(log_pi, log_ref)
        kl = float((log_pi.exp() * (log_pi - log_ref)).sum(1).mean())
        errors = [spread(values, log_pi) / math.sqrt(batch) for values in (log_pi - log_ref, leashed)]
        exact.append(Exact(seen, kl, errors[0], world.objective(log_pi, log_ref), errors[1]))

    engine = train(source, chat, compute, where, world, seed, watch, **recipe)
    log_ref, log_pi = log_probabilities(engine, "reference"), log_probabilities(engine, "policy")
    return Journey(world, log_ref, log_pi, exact, MetricsLog.read(where / "metrics.jsonl"))


def check_metrics(found: Journey, record: Record) -> None:
    """The logged KL and leashed reward of a tenth of the iterations are the enumerated ones, within 4 standard errors."""
    assert len(found.exact) >= 5 and found.exact[-1].kl > 0.2
    errors = []
    for exact in found.exact:
        line = found.logged[exact.step - 1]
        assert line["step"] == exact.step
        errors.append(abs(line["objective/kl"] - exact.kl) / (exact.kl_error + 1e-5))
        errors.append(abs(line["objective/rlhf_reward"] - exact.leashed) / (exact.leashed_error + 1e-5))
    record("largest error of a logged mean in standard errors", max(errors))
    assert max(errors) <= 4


def check_optimum(found: Journey, record: Record) -> None:
    """PPO went from far away to the closed form."""
    before, after = (total_variation(log_p, found.log_star) for log_p in (found.log_ref, found.log_pi))
    deviation = spread(found.world.leashed(found.log_pi, found.log_ref), found.log_star)
    record("total variation before", before)
    record("after", after)
    record("std of the leashed reward", deviation)
    assert before >= 0.3
    assert after <= 0.02
    assert deviation <= 0.05


def test_the_answers_are_all_there_are(source: Callable[[int], Path], chat: Chat, compute: Compute) -> None:
    total = log_probabilities_in(source(0), chat, compute).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


def test_the_closed_form_is_the_best_there_is(source: Callable[[int], Path], chat: Chat, compute: Compute) -> None:
    """Its value is kl_coef log Z, and no distribution near it does better."""
    world, log_ref = World.random(0, 0.5), log_probabilities_in(source(0), chat, compute)
    log_star = world.optimum(log_ref)
    log_z = torch.logsumexp(log_ref + world.rewards / 0.5, dim=1)
    assert world.objective(log_star, log_ref) == pytest.approx(0.5 * float(log_z.mean()), abs=1e-9)
    generator = torch.Generator().manual_seed(1)
    for size in (0.01, 0.1, 1.0):
        noise = size * torch.randn(log_star.shape, generator=generator, dtype=torch.float64)
        assert world.objective(torch.log_softmax(log_star + noise, 1), log_ref) < world.objective(log_star, log_ref)


@pytest.mark.proof
def test_ppo_goes_to_the_known_optimum(
    source: Callable[[int], Path], chat: Chat, compute: Compute, tmp_path: Path, record_property: Record
) -> None:
    """Some of the way that the next test goes to its end."""
    short = {"total_episodes": 256 * 70, "batch_size": 256, "num_mini_batches": 4}
    found = journey(source(0), chat, compute, tmp_path, 0.5, 0, **short)
    log_ref, log_pi, log_star = found.log_ref, found.log_pi, found.log_star
    start, reached, best = (found.world.objective(log_p, log_ref) for log_p in (log_ref, log_pi, log_star))
    assert (reached - start) / (best - start) > 0.9
    assert total_variation(log_ref, log_star) >= 0.3
    assert total_variation(log_pi, log_star) < 0.15
    record_property("total variation after", total_variation(log_pi, log_star))
    check_metrics(found, record_property)


@pytest.mark.proof
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kl_coef", [0.2, 0.5, 1.0])
def test_ppo_reaches_the_optimum(
    source: Callable[[int], Path],
    chat: Chat,
    compute: Compute,
    tmp_path: Path,
    record_property: Record,
    kl_coef: float,
    seed: int,
) -> None:
    found = journey(source(seed), chat, compute, tmp_path, kl_coef, seed)
    check_optimum(found, record_property)
    check_metrics(found, record_property)


@pytest.mark.proof
@pytest.mark.parametrize(("where", "mistake"), OF_THE_OPTIMUM.values(), ids=OF_THE_OPTIMUM)
def test_a_mistake_does_not_reach_it(
    source: Callable[[int], Path],
    chat: Chat,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    where: str,
    mistake: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr(ppo, where, mistake)
    found = journey(source(0), chat, compute, tmp_path, 0.5, 0)
    with pytest.raises(AssertionError):
        check_optimum(found, record_property)
