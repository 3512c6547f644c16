"""DPO goes where PPO goes: fed with a reward's own preferences, its best policy is the optimum of the leashed objective.

Rafailov et al. 2023: with P(i better than j) = sigmoid(r_i - r_j) the DPO loss is least at pi_ref(y) exp(r(y) / beta) / Z.
"""

from __future__ import annotations

import torch
from table_policy import ANSWERS, PREFIXES, VOCABULARY, is_response, token_logprobs

from whelp.maths.outputs import TokenScores
from whelp.maths.preference import DPOLoss, DPOTargets

BETA = 0.5


def test_the_least_loss_is_at_the_known_optimum(record_property) -> None:
    draw = torch.Generator().manual_seed(2)
    reference = torch.randn(len(PREFIXES), VOCABULARY, generator=draw, dtype=torch.float64)
    rewards = torch.randn(len(ANSWERS), generator=draw, dtype=torch.float64)
    log_ref = token_logprobs(reference).sum(1)
    count = len(ANSWERS)
    better = torch.sigmoid(rewards[:, None] - rewards[None])
    better.fill_diagonal_(torch.nan)
    targets = DPOTargets(
        torch.zeros(count, dtype=torch.long),
        torch.arange(count),
        better,
        torch.zeros(count),
        torch.ones(count),
        log_ref,
    )
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = DPOLoss(BETA)(TokenScores(token_logprobs(logits), is_response(ANSWERS)), targets).loss
        value.backward()
        return value

    optimizer.step(loss)
    optimum = torch.softmax(log_ref + rewards / BETA, dim=0)
    found = token_logprobs(logits.detach()).sum(1).exp()
    assert 0.5 * (log_ref.exp() - optimum).abs().sum() > 0.3
    distance = float(0.5 * (found - optimum).abs().sum())
    record_property("total variation to the optimum", distance)
    assert distance < 1e-3
