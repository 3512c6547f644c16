"""How much better a token was than expected."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GRPO_EPS = 1e-4


def gae(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    is_response: Bool[Tensor, "B R"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, zero off the mask.

    A_t = delta_t + gamma * lam * A_{t+1} with delta_t = r_t + gamma * V_{t+1} - V_t; behind the last response token
    both V and A are zero, whether the model ended its turn or was cut off.
    """
    mask = is_response.to(values.dtype)
    values = torch.where(is_response, values, values.new_zeros(()))
    rewards = torch.where(is_response, rewards, rewards.new_zeros(()))
    advantages = torch.zeros_like(values)
    next_advantage = next_value = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def rloo(
    rewards: Float[Tensor, "B R"], is_response: Bool[Tensor, "B R"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B R"]:
    """REINFORCE with leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, eq. 10), the same for every token of an answer.

    An answer's whole reward, the leash's part included, minus the mean of the other answers to the same prompt. `group`
    numbers the prompts. Raises ValueError where a prompt has one answer only.
    """
    total, mean, count = _by_group(rewards, is_response, group)
    return _spread((total - mean) * count / (count - 1), is_response)


def grpo(
    rewards: Float[Tensor, "B R"], is_response: Bool[Tensor, "B R"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B R"]:
    """Group-relative advantages (Shao et al. 2024, eq. 21): centred and scaled among the answers to a prompt.

    Ours scales the whole reward, the leash's part included. Raises ValueError where a prompt has one answer only.
    """
    total, mean, count = _by_group(rewards, is_response, group)
    variance = total.new_zeros(int(group.max()) + 1).index_add(0, group, (total - mean) ** 2)[group] / (count - 1)
    return _spread((total - mean) / (variance.sqrt() + GRPO_EPS), is_response)


def beside_group(
    advantages: Float[Tensor, "B R"], is_response: Bool[Tensor, "B R"], group: Int[Tensor, "B"]
) -> Float[Tensor, "B R"]:
    """Less what the critic misjudged about the prompt, as the other answers to it show.

    The advantage of an answer's first token is how much better the answer was than the critic expected of its prompt. The mean
    of that over the *other* answers to the prompt does not depend on this answer, so that taking it off every token
    changes the noise of the policy's gradient and not its mean (a baseline; Sutton and Barto 2018, section 13.4). With
    values of 0 and lambda 1 this is leave-one-out. An answer that is alone keeps its advantages.
    """
    first = advantages[:, 0]
    groups = int(group.max()) + 1
    count = first.new_zeros(groups).index_add(0, group, torch.ones_like(first))[group]
    others = first.new_zeros(groups).index_add(0, group, first)[group] - first
    return advantages - _spread(others / (count - 1).clamp(min=1), is_response)


def _by_group(
    rewards: Float[Tensor, "B R"], is_response: Bool[Tensor, "B R"], group: Int[Tensor, "B"]
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Of every answer: its whole reward, and the mean and number of those of its prompt."""
    total = torch.where(is_response, rewards, rewards.new_zeros(())).sum(1)
    groups = int(group.max()) + 1
    count = total.new_zeros(groups).index_add(0, group, torch.ones_like(total))
    if bool((count == 1).any()):
        raise ValueError(
            "a prompt with one answer has nothing to compare it with; sample at least two (num_generations)"
        )
    return total, (total.new_zeros(groups).index_add(0, group, total) / count)[group], count[group]


def _spread(advantage: Float[Tensor, "B"], is_response: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """An answer's advantage at each of its tokens."""
    return torch.where(is_response, advantage[:, None], advantage.new_zeros(()))
