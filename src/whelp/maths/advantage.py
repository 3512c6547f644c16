"""How much better a token was than expected."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
