"""When the learning rates of PPO rise and fall."""

from __future__ import annotations

import pytest

from whelp.config import PPOConfig
from whelp.stages.ppo import critic_iterations, learning_rates


def test_the_policy_waits_for_the_critic_then_rises_then_falls():
    config = PPOConfig(
        num_ppo_epochs=1, num_mini_batches=2, critic_warmup_iterations=1, warmup_ratio=0.5,
        learning_rate=12.0, value_learning_rate=8.0,
    )  # fmt: skip
    rates = [learning_rates(config, step, update, iterations=4) for step in (1, 2, 3, 4) for update in (0, 1)]
    assert [rate["policy"] for rate in rates] == pytest.approx([0, 0, 3, 6, 9, 12, 8, 4])
    assert [rate["value"] for rate in rates] == pytest.approx([8, 7, 6, 5, 4, 3, 2, 1])


def test_a_critic_may_learn_to_the_end_alone():
    config = PPOConfig(num_ppo_epochs=2, num_mini_batches=1, critic_warmup_iterations=3)
    assert {learning_rates(config, step, 0, iterations=3)["policy"] for step in (1, 2, 3)} == {0.0}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_generations": 1}, 1),
        ({"num_generations": 2}, 0),
        ({"num_generations": 2, "critic_warmup_iterations": 3}, 3),
        ({"num_generations": 1, "critic_warmup_iterations": 0}, 0),
        ({"num_generations": 2, "advantage": "rloo", "critic_warmup_iterations": 3}, 0),
    ],
)
def test_the_policy_waits_where_nothing_stands_in_for_a_critic_that_knows_nothing_yet(settings, expected):
    assert critic_iterations(PPOConfig(**settings)) == expected
