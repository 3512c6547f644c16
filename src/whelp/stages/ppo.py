"""Proximal policy optimisation: raise the reward, on a leash to the SFT model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whelp.config import PPOConfig
from whelp.engines.base import Engine, Held, Metrics, SamplingParams, Term
from whelp.maths.advantage import beside_group, gae, grpo, rloo
from whelp.maths.masked import masked_mean, masked_whiten
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets, shaped_rewards
from whelp.maths.shaping import AdaptiveKL, FixedKL, RunningMoments, clip_scores, missing_eos
from whelp.maths.stats import clusters_of
from whelp.monitors.hacks import SIGNS
from whelp.rewards.base import Reward
from whelp.runs.metrics import MetricsLog
from whelp.stages import on_policy, sft
from whelp.stages.best import Best
from whelp.stages.context import Stage, answers_in_order, shuffled, warmup_then_linear
from whelp.stages.guard import Guard
from whelp.text.chat import Chat, sampled
from whelp.types import Completion, Demonstration, Prompt

SAMPLES_LOGGED = 4


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one iteration learns from."""

    completions: Sequence[Completion]
    held: Held
    is_response: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    ref_logprobs: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"] | None
    """None where no critic is needed."""
    rewards: Float[Tensor, "B"]
    """What the reward says."""
    scores: Float[Tensor, "B"]
    """What is learned from: `rewards` normalised and clipped, less the penalty of answers that were cut off."""
    opinions: Float[Tensor, "B"] | None = None
    """What somebody says from whom nothing is learned."""

    @property
    def kl(self) -> Float[Tensor, "B"]:
        """log pi - log pi_ref of each whole answer: its mean estimates the KL, in nats."""
        return ((self.logprobs - self.ref_logprobs) * self.is_response).sum(1)

    @property
    def group(self) -> Int[Tensor, "B"]:
        """A number for each prompt, shared by its answers."""
        return clusters_of([c.prompt.id for c in self.completions])


def train(
    engine: Engine,
    chat: Chat,
    prompts: Sequence[Prompt],
    reward: Reward,
    config: PPOConfig,
    stage: Stage,
    demonstrations: Sequence[Demonstration] = (),
    second_opinion: Reward | None = None,
) -> dict[str, Any]:
    """Train the engine's "policy" against `reward`, leashed to "reference"; returns the stage's metrics.

    The engine's "value" learns beside it where `config.advantage` is gae. `demonstrations` are mixed in where
    `config.ptx_coef` > 0. A `second_opinion` is heard of every answer, and the policy is kept that it likes best.
    """
    iterations = config.total_episodes // config.batch_size
    if left := config.total_episodes % config.batch_size:
        stage.progress.say(
            f"{left} of {config.total_episodes} episodes do not fill a batch of {config.batch_size} and are left out"
        )
    leash = _leash(config)
    start, state = stage.resume(engine)
    own_answers = MetricsLog(stage.folder, on_policy.FILE)
    own_answers.truncate_after(start)
    leash.kl_coef = state.get("kl_coef", leash.kl_coef)
    moments = RunningMoments(**state.get("moments", {}))
    guard = Guard.begin(config, stage, engine, start, state)
    best = Best.begin(stage, state)
    with ExitStack() as stack:
        ptx = stack.enter_context(engine.hold(sft.render(chat, demonstrations)[0])) if config.ptx_coef else None
        stack.enter_context(stage.listening())
        bar = stack.enter_context(stage.progress.steps("PPO", iterations))
        bar.advance(start)
        for step in range(start + 1, iterations + 1):
            batch, copies = batch_of_prompts(prompts, config.batch_size, step, stage.seed, config.num_generations)
            completions = sample(engine, batch, copies, config, (stage.seed, step))
            with engine.hold(sampled(chat, completions)) as held, stage.step(step, [p.id for p in batch]):
                rollout = score(engine, completions, held, reward, config, moments, second_opinion)
                what_next = guard.heed(engine, leash, step, rollout)
                if what_next == "learn":
                    metrics = learn(engine, rollout, leash.kl_coef, config, step, iterations, stage.seed, ptx)
                else:
                    metrics = rollout_metrics(rollout, leash.kl_coef)
            leash.update(metrics["objective/kl"], len(completions))
            stage.log.append(step, episode=step * config.batch_size, **metrics)
            _log_samples(stage, step, rollout)
            if "checker" not in config.rewards:
                for row in on_policy.order(completions, rollout.rewards):
                    own_answers.append(step, **row)
            if rollout.opinions is not None:
                best.observe(rollout.opinions, step, step % config.save_steps == 0 or step == iterations)
            kept = {"kl_coef": leash.kl_coef, "moments": asdict(moments), "best": best.state}
            stage.end_step(engine, step, iterations, **kept, **guard.state)
            best.keep()
            bar.advance(
                1, score=metrics["objective/scores"], kl=metrics["objective/kl"], length=metrics["response_length"]
            )
            if what_next == "stop":
                break
    if best.step:
        best.restore(engine)
    return _result(stage, guard, own_answers, config) | ({"kept": best.step} if best.step else {})


def learn(
    engine: Engine,
    rollout: Rollout,
    kl_coef: float,
    config: PPOConfig,
    step: int,
    iterations: int,
    seed: int,
    ptx: Held | None = None,
) -> Metrics:
    """One iteration: shaped rewards, advantages, and the epochs of minibatch updates."""
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.is_response, kl_coef)
    advantages, value_targets = advantages_of(rollout, rewards, config)
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, rollout.is_response)
    policy_targets = PPOTargets(rollout.logprobs, advantages, rollout.is_response)
    updates: list[Metrics] = []
    for epoch in range(config.num_ppo_epochs):
        for rows in minibatches(len(rollout.scores), config.num_mini_batches, seed, step * 1000 + epoch):
            lr = learning_rates(config, step, len(updates), iterations)
            held = rollout.held.select(rows)
            terms = []
            if value_targets is not None:
                loss = ValueLoss(config.cliprange_value)
                terms.append(Term("value", held, _rows(value_targets, rows), loss, config.value_coef))
            if step > critic_iterations(config):
                terms.append(Term("policy", held, _rows(policy_targets, rows), PPOLoss(config.cliprange)))
                if ptx is not None:
                    terms.append(_ptx_term(ptx, len(rows), seed, step * 1000 + len(updates), config.ptx_coef))
            updates.append(engine.update(terms, lr) | {"lr": lr["policy"]})
        if config.target_kl is not None and updates[-1].get("policy/approxkl", 0.0) > config.target_kl:
            break
    metrics = rollout_metrics(rollout, kl_coef) | update_metrics(updates) | {"lr": updates[-1]["lr"]}
    if value_targets is not None:
        metrics["val/explained"] = explained_variance(value_targets)
    return metrics


def advantages_of(
    rollout: Rollout, rewards: Float[Tensor, "B R"], config: PPOConfig
) -> tuple[Float[Tensor, "B R"], ValueTargets | None]:
    """Advantages by `config.advantage`, and what the critic is to learn where there is one."""
    if rollout.values is None:
        compare = {"rloo": rloo, "grpo": grpo}[config.advantage]
        return compare(rewards, rollout.is_response, rollout.group), None
    advantages, returns = gae(rewards, rollout.values, rollout.is_response, config.gamma, config.lam)
    advantages = beside_group(advantages, rollout.is_response, rollout.group)
    return advantages, ValueTargets(rollout.values, returns, rollout.is_response)


def sample(
    engine: Engine, prompts: Sequence[Prompt], copies: int, config: PPOConfig, key: tuple[int | str, ...]
) -> list[Completion]:
    """`copies` answers to every prompt, in the order of the prompts."""
    params = SamplingParams(copies, config.temperature, config.response_length, ("ppo", *key))
    return answers_in_order(engine, "policy", prompts, params)


def score(
    engine: Engine,
    completions: Sequence[Completion],
    held: Held,
    reward: Reward,
    config: PPOConfig,
    moments: RunningMoments,
    second_opinion: Reward | None = None,
) -> Rollout:
    """Log-probabilities under policy and reference, values, and scores of the sampled answers, which go into `moments`.

    The old log-probabilities are those of the engine that trains, never the sampler's.
    """
    policy, reference = engine.logprobs("policy", held), engine.logprobs("reference", held)
    rewards = reward(completions, held)
    moments.update(rewards)
    scores = moments.normalize(rewards) if config.normalize_scores else rewards
    scores = clip_scores(scores, config.score_clip)
    scores = missing_eos(scores, torch.tensor([c.is_finished for c in completions]), config.missing_eos_penalty)
    assert policy.entropy is not None
    return Rollout(
        completions,
        held,
        policy.is_response,
        policy.logprobs,
        reference.logprobs,
        policy.entropy,
        engine.values("value", held) if config.advantage == "gae" else None,
        rewards,
        scores,
        None if second_opinion is None else second_opinion(completions, held),
    )


def batch_of_prompts(
    prompts: Sequence[Prompt], batch_size: int, step: int, seed: int, num_generations: int = 1
) -> tuple[list[Prompt], int]:
    """The prompts of iteration `step` (from 1), none twice, and how many answers each gets.

    Every epoch deals out all prompts in a new order, a claim beside its twin; what is left over at its end waits for a
    later one. Each prompt gets `num_generations` answers, or, where there are too few prompts for the batch, the least number
    above it that fills it.
    """
    copies = next(
        n for n in range(num_generations, batch_size + 1) if batch_size % n == 0 and batch_size // n <= len(prompts)
    )
    size = batch_size // copies
    epoch, place = divmod(step - 1, len(prompts) // size)
    order = beside_twins(shuffled(len(prompts), seed, epoch), prompts)
    return [prompts[i] for i in order[place * size : (place + 1) * size]], copies


def beside_twins(order: Sequence[int], prompts: Sequence[Prompt]) -> list[int]:
    """The same order, but the second prompt of a pair follows the first at once: they land in one batch, but for a pair
    across the border of two."""
    units: dict[str, list[int]] = {}
    for i in order:
        units.setdefault(prompts[i].pair or f"prompt {i}", []).append(i)
    return [i for unit in units.values() for i in unit]


def critic_iterations(config: PPOConfig) -> int:
    """The first iterations, in which the critic learns alone."""
    if config.advantage != "gae":
        return 0
    if config.critic_warmup_iterations is not None:
        return config.critic_warmup_iterations
    return 1 if config.num_generations == 1 else 0


def learning_rates(config: PPOConfig, step: int, update: int, iterations: int) -> dict[str, float]:
    """Of update `update` (from 0) of iteration `step` (from 1). Both fall to 0; the policy's rises first, because Adam's first
    steps are as large as any and point where the noise of one minibatch does."""
    per_iteration = config.num_ppo_epochs * config.num_mini_batches
    done, total = (step - 1) * per_iteration + update, iterations * per_iteration
    critic_only = critic_iterations(config) * per_iteration
    policy = (
        warmup_then_linear(done - critic_only, total - critic_only, config.warmup_ratio) if done >= critic_only else 0.0
    )
    return {"policy": config.learning_rate * policy, "value": config.value_learning_rate * (1.0 - done / total)}


def minibatches(count: int, parts: int, seed: int, key: int) -> list[list[int]]:
    """A fresh random partition into `parts` minibatches."""
    order = shuffled(count, seed, key)
    return [order[i::parts] for i in range(parts)]


def rollout_metrics(rollout: Rollout, kl_coef: float) -> Metrics:
    mask = rollout.is_response
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef)
    lengths = mask.sum(1).float()
    sampled = torch.tensor([p for c in rollout.completions for p in c.logprobs])
    opinions = {} if rollout.opinions is None else {"objective/second_opinion": float(rollout.opinions.mean())}
    return {
        **opinions,
        "objective/kl": float(rollout.kl.mean()),
        "objective/scores": float(rollout.scores.mean()),
        "objective/scores_std": float(rollout.scores.std(correction=0)),
        "objective/rlhf_reward": float(rewards.sum(1).mean()),
        "objective/entropy": float(masked_mean(rollout.entropy, mask)),
        "objective/kl_coef": kl_coef,
        "sampler/mismatch": float((rollout.logprobs[mask] - sampled).abs().mean()),
        "response_length": float(lengths.mean()),
        "finished": sum(c.is_finished for c in rollout.completions) / len(rollout.completions),
        **{name: fmean(read(c.text) for c in rollout.completions) for name, read in SIGNS.items()},
    }


def update_metrics(updates: Sequence[Metrics]) -> Metrics:
    """Means over the minibatch updates of one iteration, under TRL's names."""
    names = {
        "policy/approxkl_avg": "policy/approxkl",
        "policy/clipfrac_avg": "policy/clipfrac",
        "loss/policy_avg": "policy/loss",
        "loss/value_avg": "value/loss",
        "val/clipfrac_avg": "value/clipfrac",
        "val/ratio": "policy/ratio",
        "policy/grad_norm": "policy/grad_norm",
        "value/grad_norm": "value/grad_norm",
    }
    result = {}
    for name, key in names.items():
        values = [update[key] for update in updates if key in update]
        if values:
            result[name] = sum(values) / len(values)
    if "policy/ratio_error" in updates[0]:
        result["val/first_ratio_error"] = updates[0]["policy/ratio_error"]
    result["updates"] = len(updates)
    return result


def explained_variance(targets: ValueTargets) -> float:
    """1 - Var(returns - values) / Var(returns) over response tokens: 1 for a perfect critic, 0 for a constant one."""
    returns, values = targets.returns[targets.is_value_target], targets.old_values[targets.is_value_target]
    variance = float(returns.var(correction=0))
    return 1.0 - float((returns - values).var(correction=0)) / variance if variance > 0 else 0.0


def _result(stage: Stage, guard: Guard, own_answers: MetricsLog, config: PPOConfig) -> dict[str, Any]:
    """The stage's metrics, of what its logs hold."""
    lines, iterations = stage.log.read(stage.log.path), config.total_episodes // config.batch_size
    return {
        "iterations": len(lines),
        "episodes": len(lines) * config.batch_size,
        "first": lines[0],
        "last": lines[-1],
        "on_policy": on_policy.by_checkpoint(own_answers.read(own_answers.path), config.save_steps, iterations),
        "alarms": guard.told(),
    }


def _leash(config: PPOConfig) -> FixedKL | AdaptiveKL:
    if config.kl_target is None:
        return FixedKL(config.kl_coef)
    return AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)


def _rows(targets: Any, rows: Sequence[int]) -> Any:
    return type(targets)(*(getattr(targets, name)[rows] for name in targets.__dataclass_fields__))


def _ptx_term(ptx: Held, count: int, seed: int, key: int, coef: float) -> Term:
    rows = shuffled(len(ptx.sequences), seed, key)[:count]
    return sft.term(ptx.select(rows), coef)


def _log_samples(stage: Stage, step: int, rollout: Rollout) -> None:
    for row, completion in enumerate(rollout.completions[:SAMPLES_LOGGED]):
        stage.samples.append(
            step,
            prompt=completion.prompt.text,
            completion=completion.text,
            score=float(rollout.scores[row]),
            kl=float(rollout.kl[row]),
            length=len(completion.tokens),
            finished=completion.is_finished,
        )
