"""Well-known mistakes, to be put in the place of what `stages/ppo.py` calls."""

from __future__ import annotations

import torch

from whelp.maths.masked import last_true, masked_whiten
from whelp.stages import ppo

shaped, gae = ppo.shaped_rewards, ppo.gae


def k3_in_the_reward(scores, logprobs, ref, is_response, kl_coef):
    log_ratio = ref - logprobs
    k3 = torch.where(is_response, log_ratio.exp() - 1 - log_ratio, 0.0)
    return -kl_coef * k3 + last_true(is_response) * scores[:, None]


def flipped_kl(scores, logprobs, ref, is_response, kl_coef):
    return shaped(scores, logprobs, ref, is_response, -kl_coef)


def no_kl(scores, logprobs, ref, is_response, kl_coef):
    return shaped(scores, logprobs, ref, is_response, 0.0)


def whitened(scores, logprobs, ref, is_response, kl_coef):
    """Scaled to unit variance; their mean stays (Huang et al. 2024, detail 16)."""
    rewards = shaped(scores, logprobs, ref, is_response, kl_coef)
    return torch.where(is_response, masked_whiten(rewards, is_response) + rewards[is_response].mean(), 0.0)


def score_on_the_first_token(scores, logprobs, ref, is_response, kl_coef):
    """For every token but the first it comes too early to be seen."""
    rewards = shaped(torch.zeros_like(scores), logprobs, ref, is_response, kl_coef)
    rewards[:, 0] += scores
    return rewards


def gamma_too_small(rewards, values, is_response, gamma, lam):
    return gae(rewards, values, is_response, 0.9, lam)


OF_THE_OPTIMUM = {
    "k3 in the reward": ("shaped_rewards", k3_in_the_reward),
    "flipped KL sign": ("shaped_rewards", flipped_kl),
    "no KL": ("shaped_rewards", no_kl),
    "reward whitening": ("shaped_rewards", whitened),
    "gamma 0.9": ("gae", gamma_too_small),
}
"""Those that lead elsewhere: what is patched, and with what."""
