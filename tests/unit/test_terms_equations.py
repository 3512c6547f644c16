"""The equations of `whelp explain` are those of the code: each is worked out by hand, number by number, beside the function."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from whelp.engines.sampler import draw
from whelp.engines.scoring import token_logprobs_and_entropy
from whelp.glossary import find
from whelp.judges.base import Comparison, Opinion, labels
from whelp.maths import shaping
from whelp.maths.advantage import gae, grpo, rloo
from whelp.maths.best_of_n import expected_best, kl_bound
from whelp.maths.calibration import expected_calibration_error
from whelp.maths.masked import masked_mean, masked_whiten
from whelp.maths.outputs import Rewards, TokenScores, Values
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets, shaped_rewards
from whelp.maths.posterior import head_posterior
from whelp.maths.preference import BradleyTerry, DPOLoss, DPOTargets, PreferenceTargets
from whelp.maths.sft import CrossEntropy, SFTTargets
from whelp.maths.stats import wilson
from whelp.types import Principle

PRINCIPLE = Principle("id", "honest", "p", "c", "r", "A or B?")


def says(term: str, *lines: str) -> None:
    """These lines are the term's equation: whoever changes one comes by here."""
    assert find(term).equation == "\n".join(lines)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ranked(probability: list[list[float]], margin: float = 0.0) -> PreferenceTargets:
    """One prompt whose answer i is better than answer j with probability[i][j]."""
    count = len(probability)
    return PreferenceTargets(
        torch.zeros(count, dtype=torch.long),
        torch.arange(count),
        torch.tensor(probability),
        torch.full((count,), margin),
        torch.ones(count),
    )


def loss_of(rewards: list[float], targets: PreferenceTargets) -> float:
    return float(BradleyTerry()(Rewards(torch.tensor([rewards])), targets).loss)


WINS = [[math.nan, 1.0], [0.0, math.nan]]


class TestPreferences:
    def test_bradley_terry(self):
        says("Bradley-Terry", "P(i better than j) = sigmoid(r_i - r_j)", "loss = -log sigmoid(r_w - r_l)")
        assert loss_of([1.5, 0.25], ranked(WINS)) == pytest.approx(-math.log(sigmoid(1.25)))
        assert "lead of 0 wins half of the time, of 1 in 73%, of 2 in 88%" in find("Bradley-Terry").text
        assert [round(100 * sigmoid(lead)) for lead in (0, 1, 2)] == [50, 73, 88]
        assert loss_of([0.0, 0.0], ranked(WINS)) == pytest.approx(0.693, abs=5e-4)

    def test_k_wise(self):
        says("K-wise ranking", "loss = -1/C(K,2) * sum over pairs of log sigmoid(r_w - r_l)")
        r = [0.3, 1.1, -0.4]  # the first is best, the last worst
        better = [[math.nan, 1.0, 1.0], [0.0, math.nan, 1.0], [0.0, 0.0, math.nan]]
        by_hand = -(math.log(sigmoid(-0.8)) + math.log(sigmoid(0.7)) + math.log(sigmoid(1.5))) / 3
        assert loss_of(r, ranked(better)) == pytest.approx(by_hand)

    def test_a_soft_label(self):
        says(
            "soft label",
            "loss = -p * log sigmoid(r_w - r_l) - (1 - p) * log sigmoid(r_l - r_w)",
            "smoothed by e: p' = p + e * (1 - 2p)",
        )
        p = 0.8 + 0.1 * (1 - 2 * 0.8)
        assert p == pytest.approx(0.9 * 0.8 + 0.1 * 0.2)  # the label, or with 0.1 its contrary
        soft = ranked([[math.nan, p], [1 - p, math.nan]])
        by_hand = -p * math.log(sigmoid(0.6)) - (1 - p) * math.log(sigmoid(-0.6))
        assert loss_of([0.6, 0.0], soft) == pytest.approx(by_hand)

    def test_a_margin(self):
        says("margin", "loss = -log sigmoid(r_w - r_l - margin)")
        assert loss_of([2.0, 0.5], ranked(WINS, margin=0.4)) == pytest.approx(-math.log(sigmoid(1.1)))

    def test_dpo(self):
        says(
            "DPO",
            "r(x, y) = beta * (log pi(y | x) - log pi_ref(y | x))",
            "loss = -log sigmoid(r(x, y_w) - r(x, y_l))",
        )
        compared = ranked(WINS)
        targets = DPOTargets(
            compared.group,
            compared.slot,
            compared.probability,
            compared.margin,
            compared.weight,
            torch.tensor([-4.0, -3.0]),
        )
        logprobs = TokenScores(torch.tensor([[-1.0, -2.0], [-5.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
        lead = 0.2 * (-3.0 - -4.0) - 0.2 * (-5.0 - -3.0)
        assert float(DPOLoss(beta=0.2)(logprobs, targets).loss) == pytest.approx(-math.log(sigmoid(lead)))

    def test_calibration(self):
        says(
            "calibration",
            "confidence = sigmoid(|r_w - r_l|)",
            "error = sum over bins b of n_b / n * |confidence_b - accuracy_b|",
        )
        # Confidences 0.73 and 0.731 share a bin of width 0.05 and are right once; 0.95 is alone and right.
        leads = [math.log(0.73 / 0.27), -math.log(0.731 / 0.269), math.log(0.96 / 0.04)]
        by_hand = 2 / 3 * abs((0.73 + 0.731) / 2 - 0.5) + 1 / 3 * abs(0.96 - 1.0)
        assert expected_calibration_error(torch.tensor(leads)) == pytest.approx(by_hand, abs=1e-6)

    def test_an_ensemble_and_its_doubt(self):
        says("ensemble", "mean: r = 1/M * sum over m of r_m", "min: r = min over m of r_m")
        says(
            "uncertainty",
            "r = mean over m of r_m - uncertainty_coef * (variance over m of r_m + mean over m of variance_m)",
        )
        r, variance = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[0.1], [0.2], [0.6]])
        spread = ((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3
        assert float(shaping.aggregate(r, "mean")) == pytest.approx(3.0)
        assert float(shaping.aggregate(r, "min")) == 1.0
        assert float(shaping.aggregate(r, "uncertainty", 0.5, variance)) == pytest.approx(3.0 - 0.5 * (spread + 0.3))

    def test_the_posterior(self):
        says(
            "posterior",
            "variance of a score = (h - mean h)' C (h - mean h)",
            "C = (I + 1/4 * pairs * D)^-1, with D twice the covariance of h",
        )
        hidden = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        mean = hidden.mean(0)
        covariance = sum(torch.outer(h - mean, h - mean) for h in hidden) / 6
        inverse = torch.linalg.inv(torch.eye(3) + 0.25 * 40 * 2 * covariance)
        strange = torch.tensor([1.0, -2.0, 0.5])
        found = head_posterior(hidden, pairs=40).variance(strange)
        assert float(found) == pytest.approx(float((strange - mean) @ inverse @ (strange - mean)), rel=1e-4)

    def test_a_preference_as_reward(self):
        says("preference as reward", "reward = 4 * gain * (sigmoid((r - r_reference) / gain) - 1/2)")
        found = shaping.preference(torch.tensor([1.5 - 0.2]), gain=0.7)
        assert float(found) == pytest.approx(4 * 0.7 * (sigmoid(1.3 / 0.7) - 0.5))


class TestPolicy:
    """One answer of three tokens, and a place behind its end that must not count."""

    mask = torch.tensor([[True, True, True, False]])

    def test_shaped_rewards(self):
        says(
            "KL penalty",
            "r_t = -kl_coef * (log pi - log pi_ref) + [t is the last response token] * score",
            "optimum: pi_ref * exp(r / kl_coef) / Z",
        )
        pi, ref = torch.tensor([[-1.0, -2.0, -0.5, 0.0]]), torch.tensor([[-1.5, -1.0, -0.5, 7.0]])
        found = shaped_rewards(torch.tensor([3.0]), pi, ref, self.mask, kl_coef=0.1)
        assert found[0].tolist() == pytest.approx([-0.1 * 0.5, -0.1 * -1.0, 3.0, 0.0])

    def test_the_optimum_beats_what_lies_beside_it(self):
        """Of E[r] - kl_coef * KL, over all distributions on a grid of three answers."""
        ref, r, kl_coef = [0.5, 0.3, 0.2], [0.0, 1.0, 0.4], 0.5

        def objective(pi: list[float]) -> float:
            kl = sum(p * math.log(p / q) for p, q in zip(pi, ref, strict=True))
            return sum(p * x for p, x in zip(pi, r, strict=True)) - kl_coef * kl

        weighed = [q * math.exp(x / kl_coef) for q, x in zip(ref, r, strict=True)]
        best = [one / sum(weighed) for one in weighed]
        grid = [(a / 100, b / 100) for a, b in product(range(1, 99), repeat=2) if a + b < 100]
        others = [[a, b, 1 - a - b] for a, b in grid]
        assert objective(best) >= max(map(objective, others))
        assert max(abs(a - b) for a, b in zip(best, max(others, key=objective), strict=True)) < 0.02

    def test_gae_and_the_discount(self):
        says("GAE", "delta_t = r_t + gamma * V_{t+1} - V_t", "A_t = delta_t + gamma * lam * A_{t+1}")
        says("discount", "R_t = sum over s >= t of gamma^(s-t) * r_s")
        r, v = torch.tensor([[0.1, -0.2, 1.0, 9.0]]), torch.tensor([[0.5, 0.4, 0.3, 9.0]])
        deltas = [0.1 + 0.9 * 0.4 - 0.5, -0.2 + 0.9 * 0.3 - 0.4, 1.0 - 0.3]
        third = deltas[2]
        second = deltas[1] + 0.9 * 0.8 * third
        first = deltas[0] + 0.9 * 0.8 * second
        assert gae(r, v, self.mask, 0.9, 0.8)[0][0].tolist() == pytest.approx([first, second, third, 0.0])
        returns = gae(r, torch.zeros_like(v), self.mask, 0.9, 1.0)[0][0]
        assert returns.tolist() == pytest.approx([0.1 - 0.9 * 0.2 + 0.81, -0.2 + 0.9, 1.0, 0.0])
        assert "at 0.95 a tenth of it arrives 45 tokens earlier" in find("GAE").text
        assert abs(0.95**45 - 0.1) < 0.005

    @pytest.mark.parametrize(("ratio", "advantage", "counts"), [(1.5, 2.0, 1.2), (1.5, -2.0, 1.5), (0.5, -2.0, 0.8)])
    def test_the_clipped_ratio(self, ratio, advantage, counts):
        says("clip", "min(ratio * A, clip(ratio, 1 +- cliprange) * A)")
        says("PPO", "loss = mean over response tokens of -min(ratio * A, clip(ratio, 1 +- cliprange) * A)")
        says("ratio", "ratio_t = exp(log pi(y_t | x, y_<t) - log pi_old(y_t | x, y_<t))")
        here, old = torch.tensor([[True]]), torch.tensor([[-2.0]])
        targets = PPOTargets(old, torch.tensor([[advantage]]), here)
        found = PPOLoss(cliprange=0.2)(TokenScores(old + math.log(ratio), here), targets)
        assert float(found.loss) / PPOLoss().count(targets) == pytest.approx(-counts * advantage)
        says("target KL", "approxkl = mean over response tokens of 0.5 * (log pi - log pi_old)^2")
        assert float(found.sums["approxkl"]) == pytest.approx(0.5 * math.log(ratio) ** 2)

    @pytest.mark.parametrize(("value", "error"), [(0.8, (0.2 - 1.0) ** 2), (-0.8, (-0.8 - 1.0) ** 2)])
    def test_the_clipped_value(self, value, error):
        says("value clipping", "loss = 0.5 * max((V - R)^2, (clip(V, V_old +- cliprange_value) - R)^2)")
        here, old = torch.tensor([[True]]), torch.tensor([[0.0]])
        found = ValueLoss(cliprange_value=0.2)(
            Values(torch.tensor([[value]]), here), ValueTargets(old, torch.tensor([[1.0]]), here)
        )
        assert float(found.loss) == pytest.approx(0.5 * error)

    def test_masks_and_whitening(self):
        says("loss mask", "mean of v = sum over t of is_response_t * v_t / sum over t of is_response_t")
        says("whitening", "A_t <- (A_t - mean(A)) / sqrt(var(A) + 1e-8)")
        values = torch.tensor([[1.0, 2.0, 6.0, math.nan]])
        assert float(masked_mean(values, self.mask)) == pytest.approx(3.0)
        spread = math.sqrt((4 + 1 + 9) / 3)
        assert masked_whiten(values, self.mask)[0].tolist() == pytest.approx(
            [-2 / spread, -1 / spread, 3 / spread, 0.0]
        )

    def test_sft(self):
        says("SFT", "loss = -(1 / N) * sum over the N response tokens of log pi(y_t | x, y_<t)")
        loss, targets = CrossEntropy(), SFTTargets(self.mask)
        total = loss(TokenScores(torch.tensor([[-1.0, -2.0, -0.5, 9.0]]), self.mask), targets).loss
        assert float(total) / loss.count(targets) == pytest.approx(3.5 / 3)

    def test_answers_beside_each_other(self):
        says("RLOO", "A_i = R_i - mean of R_j over the other answers j to the prompt")
        says("GRPO", "A_i = (R_i - mean(R)) / (std(R) + 1e-4), over the answers to the prompt")
        rewards, here = torch.tensor([[1.0], [2.0], [6.0]]), torch.ones(3, 1, dtype=torch.bool)
        same_prompt = torch.zeros(3, dtype=torch.long)
        assert rloo(rewards, here, same_prompt)[:, 0].tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
        spread = math.sqrt((4 + 1 + 9) / 2) + 1e-4
        assert grpo(rewards, here, same_prompt)[:, 0].tolist() == pytest.approx([-2 / spread, -1 / spread, 3 / spread])

    def test_the_adaptive_leash(self):
        says(
            "adaptive KL",
            "e = clip(KL / kl_target - 1, +-0.2)",
            "kl_coef <- kl_coef * (1 + e * episodes / kl_horizon)",
        )
        leash = shaping.AdaptiveKL(kl_coef=0.05, target=6.0, horizon=1000)
        leash.update(6.6, episodes=100)
        assert leash.kl_coef == pytest.approx(0.05 * (1 + 0.1 * 0.1))
        leash.update(60.0, episodes=100)
        assert leash.kl_coef == pytest.approx(0.05 * 1.01 * (1 + 0.2 * 0.1))

    def test_the_penalty_of_what_was_cut_off(self):
        says("missing EOS penalty", "score <- score - missing_eos_penalty, where no end of turn was given")
        found = shaping.missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 1.0)
        assert found.tolist() == [2.0, 1.0]


class TestDistributions:
    pi, ref = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)

    def test_kl_and_its_estimators(self):
        """k1 and k3 have the KL as their mean over samples of pi, k2 has not; k3 is never negative."""
        says("KL divergence", "KL(pi, pi_ref) = E over y from pi of [log pi(y | x) - log pi_ref(y | x)]")
        says(
            "KL estimator",
            "with d = log pi - log pi_ref at samples of pi:",
            "k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d",
        )
        p, q = (torch.distributions.Categorical(torch.tensor(one, dtype=torch.float64)) for one in (self.pi, self.ref))
        kl = float(torch.distributions.kl_divergence(p, q))
        d = [math.log(a / b) for a, b in zip(self.pi, self.ref, strict=True)]

        def mean(estimates: list[float]) -> float:
            return sum(p * one for p, one in zip(self.pi, estimates, strict=True))

        k3 = [math.exp(-x) - 1 + x for x in d]
        assert mean(d) == pytest.approx(kl) and mean(k3) == pytest.approx(kl)
        assert mean([x**2 / 2 for x in d]) == pytest.approx(kl, rel=0.3)
        assert min(d) < 0 <= min(k3)

    def test_temperature(self):
        says("temperature", "p_i = exp(z_i / T) / sum over j of exp(z_j / T)")
        z = [0.3, -1.0, 2.0]
        weights = [math.exp(one / 0.7) for one in z]
        token, logprob = draw(torch.tensor([z]), torch.tensor([0.5]), temperature=0.7)
        assert math.exp(float(logprob)) == pytest.approx(weights[int(token)] / sum(weights), rel=1e-5)
        assert int(draw(torch.tensor([z]), torch.tensor([0.01]), temperature=0.0)[0]) == 2

    def test_entropy(self):
        says("entropy", "H_t = -sum over v of pi(v | x, y_<t) * log pi(v | x, y_<t)")
        logits = torch.tensor([self.pi]).log()
        _, found = token_logprobs_and_entropy(torch.nn.Identity(), logits, torch.tensor([0]))
        assert float(found) == pytest.approx(-sum(p * math.log(p) for p in self.pi))

    def test_a_nat(self):
        says("nat", "1 nat = 1 / ln 2 bits = 1.443 bits")
        assert 1 / math.log(2) == pytest.approx(1.443, abs=5e-4)

    def test_best_of_n(self):
        says("best-of-n", "y = the y_i with the highest r(x, y_i), of n samples", "KL <= log n - (n - 1) / n")
        assert "1.84 nats for n = 16" in find("best-of-n").text
        assert kl_bound(16) == pytest.approx(math.log(16) - 15 / 16) == pytest.approx(1.84, abs=0.005)
        pairs = [(0, 1), (0, 5), (1, 5)]
        assert expected_best(torch.tensor([0.0, 5.0, 1.0]), 2) == pytest.approx(sum(map(max, pairs)) / 3)


class TestMeasures:
    def test_position_bias(self):
        says(
            "position bias",
            "label = (P_1 + 1 - P_2) / 2, bias = (P_1 + P_2 - 1) / 2",
            "P_k: the judge's probability that what stands first in order k is better",
        )

        class Fixed:
            name = "fixed"

            def opinions(self, comparisons):
                yield from enumerate([Opinion(0.9), Opinion(0.6)])

        [(_, label)] = labels(Fixed(), [Comparison("id", (), "one", "other", PRINCIPLE)])
        assert label is not None
        assert (label.first, label.position_bias) == pytest.approx(((0.9 + 1 - 0.6) / 2, (0.9 + 0.6 - 1) / 2))

    def test_an_interval(self):
        says(
            "confidence interval",
            "(p + z^2 / (2n) +- z * sqrt(p * (1 - p) / n + z^2 / (4n^2))) / (1 + z^2 / n), z = 1.96",
        )
        found, z, n, p = wilson(30, 40), 1.96, 40, 0.75
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        ends = [(p + z**2 / (2 * n) + side * half) / (1 + z**2 / n) for side in (-1, 1)]
        assert [found.low, found.high] == pytest.approx(ends, abs=1e-4)
        # It is where the distance of p from the truth is z standard errors of the truth.
        assert all(abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-3) for end in ends)
