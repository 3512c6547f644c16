"""The recipe: every setting of a run, with its default, its bounds and what it does.

Names are TRL's where TRL has one. Nothing here is read from anywhere else, and every setting is read somewhere.
"""

# pyright: reportArgumentType=false
# (it takes a field for optional only where its default is named `default=`)

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from whelp.rewards.formula import parse

PositiveInt = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
TrainableLayers = PositiveInt | Literal["all"]


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("train_file", "test_file", "prompts", "principles", "output_dir", check_fields=False)
    @classmethod
    def _home(cls, value: Any) -> Any:
        """~ is the user's folder."""
        return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


class SFTConfig(Section):
    """Supervised fine-tuning on ideal answers."""

    train_file: str = Field("builtin:demonstrations", description="demonstrations: a file, hub id or builtin:<name>")
    num_train_epochs: PositiveInt = Field(2, description="passes over the demonstrations")
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimizer steps; empty: do not")
    learning_rate: Rate = Field(3e-4, description="peak of AdamW's learning rate")
    per_step_batch_size: PositiveInt = Field(8, description="conversations in one optimizer step")
    trainable_layers: TrainableLayers | None = Field(
        None,
        description="layers at the top that SFT trains; empty: twice the recipe's, for nothing later teaches as much",
    )
    warmup_ratio: Fraction = Field(0.05, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: Rate = Field(1.0, description="norm to which gradients are clipped")
    max_length: PositiveInt = Field(
        512, description="longest sequence in tokens; longer ones are cut, their start first"
    )
    test_fraction: Fraction = Field(0.05, description="share of the prompts held out to measure the loss")


class RewardConfig(Section):
    """A Bradley-Terry reward model on ranked answers."""

    model: str | None = Field(None, description="start from this model; empty: the SFT model, or the recipe's model")
    train_file: str = Field(
        "builtin:rankings", description="rankings or pairs: a file, hub id, builtin:<name> or db:<project>"
    )
    test_file: str | None = Field(
        None, description="held-out rankings; empty: test_fraction of train_file, split by what is said first"
    )
    test_fraction: Fraction = Field(
        0.2,
        description="share of the prompts held out where there is neither a test_file nor a judge, which holds out its own",
    )
    num_train_epochs: PositiveInt = Field(1, description="passes over the rankings")
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimizer steps; empty: do not")
    learning_rate: Rate = Field(3e-4, description="peak of AdamW's learning rate")
    per_step_batch_size: PositiveInt = Field(
        8, description="prompts (with all their completions) in one optimizer step"
    )
    warmup_ratio: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: Rate = Field(1.0, description="norm to which gradients are clipped")
    max_length: PositiveInt = Field(
        512, description="longest sequence in tokens; longer ones are cut, their start first"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of the labels that are thought to be the wrong way round"
    )
    center_rewards_coefficient: float = Field(
        0.0, ge=0, description="pulls the scores of a pair towards zero; TRL suggests 0.01"
    )
    contradictions: Literal["keep", "drop"] = Field(
        "keep",
        description="drop: leave out records that rank two answers to one prompt opposite ways; they are counted",
    )
    members: PositiveInt = Field(
        1, description="reward models on one trunk, each with a seed and a bootstrap of the prompts of its own"
    )
    learning_curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="shares of the prompts on which the model is trained again, to see whether more would help"
    )
    shuffles: int = Field(
        0,
        ge=0,
        description="times the model is trained again on shuffled ranks: it must then be right in half of the pairs",
    )
    negatives: Fraction = Field(
        0.0, description="share of the prompts whose best answer is also set above bad ones made by a program"
    )
    negative_kinds: tuple[Literal["cut off", "repeated", "off topic", "flattering", "overconfident", "padded"], ...] = (
        Field(("cut off", "repeated", "off topic"), description="how those answers are bad")
    )

    @property
    def is_like_its_controls(self) -> bool:
        """Whether this is one model that learns from rankings alone, as models on shuffled ranks or fewer prompts do."""
        return self.members == 1 and self.negatives == 0


class PPOConfig(Section):
    """Proximal policy optimisation on a leash to the SFT model."""

    train_file: str = Field("builtin:prompts", description="prompts: a file, hub id or builtin:<name>")
    reward: str = Field(
        "model",
        description="model, checker (the prompts' own checks), FILE.py:FUNCTION, or a sum: model + 0.5 * checker; a sum may take "
        "off length (in tokens), repetition, flattery, certainty and confident_error",
    )
    reward_model: str | None = Field(None, description="a reward model's folder or hub id; empty: the run's own")
    reward_aggregation: Literal["mean", "min", "uncertainty"] = Field(
        "mean",
        description="one score from an ensemble's: their mean, the worst, or the mean less its doubt (the variance over the "
        "members, and within each)",
    )
    uncertainty_coef: float = Field(
        0.5, ge=0, description="price of doubt, a variance, where reward_aggregation is uncertainty"
    )
    shaping: Literal["none", "preference"] = Field(
        "none",
        description="preference: of the model's score its sigmoid against an answer of the SFT model, so that it levels off",
    )
    debias_length: bool = Field(
        False,
        description="take off the reward model's score what it pays for length as such, as measured on held-out rankings",
    )
    only_where_trusted: bool = Field(
        True, description="leave out prompts of categories in which the reward model only guesses on held-out pairs"
    )
    advantage: Literal["gae", "rloo", "grpo"] = Field(
        "gae",
        description="gae learns a critic; rloo and grpo compare the answers to a prompt, and use no gamma, lam or critic",
    )
    num_generations: PositiveInt = Field(
        4, description="answers to each prompt in a batch: each is held against the others too; rloo and grpo need two"
    )
    total_episodes: PositiveInt = Field(1280, description="completions sampled in all")
    batch_size: PositiveInt = Field(128, description="completions in one iteration")
    num_ppo_epochs: PositiveInt = Field(1, description="passes over each batch; fresh answers usually say more")
    num_mini_batches: PositiveInt = Field(4, description="optimizer steps in one pass")
    learning_rate: Rate = Field(1.5e-4, description="the policy's peak learning rate, then falling linearly to 0")
    warmup_ratio: Fraction = Field(0.1, description="share of the policy's updates in which its learning rate rises")
    value_learning_rate: Rate = Field(1e-3, description="the critic's learning rate, falling linearly to 0")
    critic: Literal["own", "shared"] = Field(
        "own", description="own: layers of its own; shared: a head on the policy's layers, which learn from both losses"
    )
    vf_coef: float | None = Field(
        None, ge=0, description="weight of a shared critic's loss beside the policy's; empty: 0.1"
    )
    critic_warmup_iterations: int | None = Field(
        None,
        ge=0,
        description="first iterations in which only the critic learns; empty: 1, or 0 where a prompt has several answers",
    )
    response_length: PositiveInt = Field(96, description="longest answer in tokens")
    temperature: Rate = Field(0.7, description="temperature of the policy, in sampling and in its log-probabilities")
    kl_coef: float = Field(0.05, ge=0, description="strength of the leash: price of a nat of KL to the SFT model")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="k1; k3 is refused: in the reward its gradient is wrong"
    )
    kl_target: Rate | None = Field(
        None, description="adapt kl_coef to hold this KL in nats (Ziegler 2019); empty: fixed"
    )
    kl_horizon: PositiveInt = Field(10_000, description="episodes over which the adaptive controller corrects")
    target_kl: Rate | None = Field(None, description="end an iteration's epochs when the KL to its start exceeds this")
    cliprange: Rate = Field(0.2, description="the ratio is clipped to 1 +- this")
    cliprange_value: Rate = Field(0.2, description="the value may move by this from its old value")
    gamma: Fraction = Field(1.0, description="discount")
    lam: Fraction = Field(1.0, description="lambda of GAE; 1 carries the score at the end to the first word")
    whiten_advantages: bool = Field(True, description="centre and scale advantages over the batch")
    normalize_scores: bool = Field(False, description="centre and scale scores by the mean and spread of all so far")
    score_clip: Rate | None = Field(None, description="clip scores to +- this; empty: do not")
    missing_eos_penalty: float | None = Field(
        1.0, ge=0, description="taken from the score of an answer that was cut off"
    )
    ptx_coef: float = Field(0.0, ge=0, description="weight of the SFT loss on demonstrations mixed in (InstructGPT)")
    watch: Literal["off", "warn", "raise_kl", "rollback", "stop"] = Field(
        "warn",
        description="when the answers grow long, repeat, flatter or sound sure beside the first batch's: say it; double kl_coef; "
        "go back to the last good checkpoint and double it; or go back and stop",
    )
    second_opinion: str | None = Field(
        None,
        description="a reward model that teaches nothing here (judge: the run's own; or a folder or hub id): of all "
        "checkpoints the one is kept whose answers it likes best; empty: the last",
    )
    max_grad_norm: Rate = Field(1.0, description="norm to which gradients are clipped")
    save_steps: PositiveInt = Field(5, description="iterations between checkpoints")
    save_total_limit: PositiveInt = Field(1, description="checkpoints kept")

    @property
    def value_coef(self) -> float:
        """Weight of the critic's loss; with layers of its own there is nothing to weigh it against."""
        if self.critic == "own":
            return 1.0
        return 0.1 if self.vf_coef is None else self.vf_coef

    @property
    def rewards(self) -> Mapping[str, float]:
        """The weights of what scores an answer. Raises `ValueError` for a `reward` that means nothing."""
        return parse(self.reward)


class RoundsConfig(Section):
    """Online rounds: the policy's own answers are ranked, and reward model and policy are trained again."""

    n: int = Field(0, ge=0, description="rounds behind the first PPO; 0: none")
    label: str = Field(
        "people",
        description="who ranks the answers: people, or a reward as in ppo.reward, where model means label_model",
    )
    label_model: str | None = Field(None, description="a reward model's folder or hub id that ranks them")
    prompts: PositiveInt = Field(128, description="prompts of ppo.train_file that are answered in a round")
    num_generations: Annotated[int, Field(ge=2)] = Field(4, description="answers to each, to be ranked")

    @property
    def labels(self) -> Mapping[str, float]:
        """The weights of what ranks the answers; empty where people do. Raises `ValueError` for a `label` that means nothing."""
        return {} if self.label == "people" else parse(self.label)


class EndpointSettings(Section):
    """How a model behind an address is asked."""

    concurrency: PositiveInt = Field(8, description="requests to an endpoint at one time")
    votes: PositiveInt = Field(
        5, description="times an endpoint without log-probabilities is asked which is better; the share is its word"
    )
    price_in: float = Field(0.0, ge=0, description="an endpoint's price of a million tokens read")
    price_out: float = Field(0.0, ge=0, description="an endpoint's price of a million tokens written")
    max_cost: Rate | None = Field(None, description="stop asking an endpoint before this is passed; empty: no limit")


class ConstitutionConfig(EndpointSettings):
    """Constitutional AI: the model revises its own answers by written principles, and a judge ranks what it says."""

    principles: str = Field("builtin:constitution", description="the constitution: a yaml file or builtin:<name>")
    values: tuple[Literal["helpful", "honest", "harmless", "autonomy"], ...] = Field(
        ("harmless",), description="whose principles are drawn: train_file tempts to harm"
    )
    train_file: str = Field(
        "builtin:red_team",
        description="prompts that are answered, revised and compared: a file, hub id or builtin:<name>",
    )
    human: Literal["all", "helpful", "none"] = Field(
        "helpful",
        description="people's rankings that the reward model learns from too; helpful: but for categories that begin with harm, "
        "and so of the demonstrations, unless all",
    )
    rounds: Annotated[int, Field(ge=1, le=4)] = Field(2, description="critiques and revisions of each answer")
    temperature: Rate = Field(0.7, description="temperature of answers, critiques and revisions")
    max_new_tokens: PositiveInt = Field(96, description="longest answer, critique or revision in tokens")
    filter: bool = Field(
        True,
        description="leave out revisions that a reward model, trained on people's rankings, finds worse than the answer",
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(
        4, description="answers to each prompt; every two are compared"
    )
    judge: Literal["reward", "choice", "verdict", "endpoint"] = Field(
        "reward",
        description="who compares: reward, a model trained on people's rankings; choice, a language model that is asked A or B; "
        "verdict, one that is asked whether each answer keeps the principle; or endpoint, A or B by one behind an address",
    )
    thinking: bool = Field(False, description="a chain of thought before A or B; choice and endpoint")
    judge_model: str | None = Field(
        None,
        description="the language model that judges: a folder, hub id or alias, or its name at the endpoint; empty: model",
    )
    examples: int = Field(
        0, ge=0, le=32, description="pairs that people ranked, shown to a language model before each question"
    )
    principles_per_label: PositiveInt = Field(1, description="principles drawn for a pair; its label is their mean")
    clamp: tuple[Fraction, Fraction] = Field(
        (0.4, 0.6), description="between which the label of a chain of thought is kept, for it is too sure of itself"
    )
    calibrate: bool = Field(
        True, description="divide the judge's log-odds by the temperature that fits pairs which people ranked"
    )
    trust_pairs: PositiveInt = Field(300, description="pairs that people ranked on which the judge is measured first")
    allow_untrusted_labels: bool = Field(
        False, description="learn from a judge even where it agrees with people no more than chance would"
    )
    provider: Literal["openai", "anthropic"] = Field("openai", description="whose protocol the endpoint speaks")
    endpoint: str | None = Field(None, description="the endpoint's address; empty: the vendor's own")


class DPOConfig(Section):
    """Direct preference optimisation: the rankings of reward.train_file move the policy, without a reward model."""

    beta: Rate = Field(0.1, description="strength of the leash to the SFT model (Rafailov 2023)")
    num_train_epochs: PositiveInt = Field(1, description="passes over the rankings")
    max_steps: PositiveInt | None = Field(None, description="stop after so many optimizer steps; empty: do not")
    learning_rate: Rate = Field(5e-5, description="peak of AdamW's learning rate")
    per_step_batch_size: PositiveInt = Field(
        8, description="prompts (with all their completions) in one optimizer step"
    )
    warmup_ratio: Fraction = Field(0.1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: Rate = Field(1.0, description="norm to which gradients are clipped")
    max_length: PositiveInt = Field(
        512, description="longest sequence in tokens; longer ones are cut, their start first"
    )


class EvaluateConfig(EndpointSettings):
    """Before and after, on prompts that trained nothing."""

    prompts: str = Field("builtin:evaluation", description="evaluation prompts: a file, hub id or builtin:<name>")
    max_prompts: PositiveInt | None = Field(None, description="use only so many, evenly over the categories")
    samples: int = Field(0, ge=0, description="samples a prompt, besides the greedy answer")
    temperature: Rate = Field(
        0.7,
        description="temperature of the samples and of the KL to the SFT model; as ppo.temperature: what PPO trained",
    )
    max_new_tokens: PositiveInt = Field(96, description="longest answer in tokens")
    judge: bool = Field(True, description="train a judge on rankings that the reward model never saw")
    judge_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="share of the rankings' prompts that the judge learns from; the reward model has the rest"
    )
    judges: tuple[str, ...] = Field(
        (),
        description="others that compare the answers: a reward model's folder or hub id; a language model behind an address, as "
        "openai:MODEL, anthropic:MODEL or http://host/v1#MODEL; what people said, as a file of rankings or db:PROJECT",
    )
    trust_pairs: PositiveInt = Field(
        150, description="pairs that people ranked on which a judge behind an address is measured first"
    )


class AuditConfig(Section):
    """Does the reward model pay for hacks, and did the policy learn any?"""

    cases: str = Field(
        "builtin:audit", description="prompts with good answers, to which hacks are added: a file or builtin:<name>"
    )
    max_cases: PositiveInt = Field(48, description="cases that are used, from every category in turn")
    probes: tuple[str, ...] = Field((), description="Python files with probes of one's own, beside those that ship")
    reward_model: str | None = Field(
        None, description="a reward model's folder or hub id; empty: the one PPO learned from"
    )


class RayConfig(Section):
    """The processes of `engine: ray`."""

    learners: PositiveInt = Field(
        1, description="processes that share the layers and train; a GPU each where there are any"
    )
    samplers: PositiveInt = Field(1, description="processes that answer prompts; a GPU each where there are any")


class Recipe(Section):
    """One run, from a raw model to a report."""

    model: str = Field("smollm2-135m-instruct", description="local folder, hub id or alias")
    output_dir: str = Field("runs/assistant", description="the run directory")
    seed: int = Field(0, ge=0, description="every random draw follows from it")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="format of the frozen weights and of computing"
    )
    engine: Literal["auto", "local", "fsdp", "ray"] = Field(
        "auto",
        description="local: one process; fsdp: all that torchrun started; ray: actors on Ray; auto: one process, or torchrun's",
    )
    trainable_layers: TrainableLayers = Field(8, description="layers at the top that are trained; all: the whole model")
    lora_rank: int = Field(
        0,
        ge=0,
        description="rank of adapters (LoRA) that are trained beside those layers instead of the layers; 0: no adapters",
    )
    lora_alpha: Rate = Field(32.0, description="lora_alpha / lora_rank scales what the adapters add")
    system_prompt: str | None = Field(None, description="system text put before every conversation")
    report_to: Literal["none", "tensorboard"] = Field(
        "none", description="where each step's numbers go besides metrics.jsonl"
    )
    stages: tuple[Literal["sft", "revise", "feedback", "reward", "ppo", "dpo", "evaluate", "audit", "report"], ...] = (
        Field(("sft", "reward", "ppo", "evaluate", "audit", "report"), description="what is run, in this order")
    )
    sft: SFTConfig = Field(default_factory=SFTConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    ppo: PPOConfig = Field(default_factory=PPOConfig)
    rounds: RoundsConfig = Field(default_factory=RoundsConfig)
    constitution: ConstitutionConfig = Field(default_factory=ConstitutionConfig)
    dpo: DPOConfig = Field(default_factory=DPOConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    ray: RayConfig = Field(default_factory=RayConfig)

    @property
    def sft_layers(self) -> int | Literal["all"]:
        """The layers that SFT trains."""
        if self.sft.trainable_layers is not None:
            return self.sft.trainable_layers
        return "all" if self.trainable_layers == "all" else 2 * self.trainable_layers
