"""The one boundary to scale across: stages speak to an `Engine` and never know what runs behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from whelp.errors import ModelError
from whelp.maths.outputs import Loss, TokenScores
from whelp.models.adapters import LoRA
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt, Sequences

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Head = Literal["lm", "scalar"]


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """AdamW, and the norm to which the gradients of each member are clipped before a step."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What `Engine.add` makes: weights from a folder or from a model the engine has, a head, and what may be trained."""

    source: Path | None = None
    copy_of: str | None = None
    shares_branch: bool = False
    """With copy_of: the scalar head stands on the very branch of that model, and what is learned through it moves both."""
    head: Head = "lm"
    trainable_layers: int | Literal["all"] = 4
    lora: LoRA | None = None
    """Adapters are trained beside those layers, which several models then read; None: the layers are."""
    optimizer: OptimizerSpec | None = None
    """None: the model is frozen."""
    members: int = 1
    """Branches with heads of their own (scalar heads only); they share the trunk."""
    fresh_head: bool = False
    """Draw the scalar head anew (always so where the source has none)."""
    head_std: float | None = None
    """Standard deviation of a fresh scalar head; None is 1 / sqrt(H + 1)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source is None and self.copy_of is None:
            raise ModelError("a ModelSpec needs a source folder or copy_of; both are empty.")
        if self.members > 1 and self.head == "lm":
            raise ModelError("members: only a scalar head can be an ensemble; a policy has one member.")
        if self.shares_branch and (self.copy_of is None or self.head == "lm" or self.members > 1):
            raise ModelError("shares_branch: one scalar head on the branch of copy_of; expected those three.")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Plain sampling from the full distribution; temperature 0 is greedy.

    `key` names the draw: the random number of a token depends on (key, prompt id, sample, position) and nothing else.
    """

    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 96
    key: tuple[int | str, ...] = (0,)


@runtime_checkable
class Held(Protocol):
    """Sequences whose trunk activations are kept where they were made."""

    sequences: Sequences

    def select(self, rows: Sequence[int]) -> Held:
        """The same activations, fewer sequences; nothing is copied."""
        ...


@dataclass(frozen=True, slots=True)
class Term:
    """`coef * loss(model(held), targets) / count`. Targets are a dataclass of tensors with leading dimension B."""

    model: str
    held: Held
    targets: Any
    loss: Loss
    coef: float = 1.0
    member: int | None = None
    """Of an ensemble: the one member that learns from it; None: all."""


Metrics = dict[str, float]


@runtime_checkable
class Engine(Protocol):
    """Add models, sample from them, score sequences, take optimizer steps, save and export."""

    chat: Chat
    """Renders prompts and decodes answers."""

    def has(self, model: str) -> bool: ...

    def config(self, model: str) -> PretrainedConfig:
        """Of the folder that the model came from."""
        ...

    def notes(self, model: str) -> tuple[str, ...]:
        """What its user should know of how the model runs here."""
        ...

    def add(self, name: str, spec: ModelSpec) -> None:
        """Make the model `name`. Raises `ModelError` when the source cannot be used."""
        ...

    def remove(self, name: str) -> None:
        """Let go of the model `name`. Raises `ModelError` where there is none."""
        ...

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        """`params.n` completions of every prompt, in the order in which they finish."""
        ...

    def hold(self, sequences: Sequences) -> AbstractContextManager[Held]:
        """Trunk activations of `sequences`, made on first use and freed at the end of the block."""
        ...

    def logprobs(self, model: str, held: Held) -> TokenScores: ...

    def values(self, model: str, held: Held) -> Float[Tensor, "B R"]: ...

    def rewards(self, model: str, held: Held) -> Float[Tensor, "M B"]: ...

    def fit_posterior(self, model: str, held: Held, pairs: float) -> None:
        """Learn, behind training, what the scalar heads of `model` are sure of, having learned from so many pairs of answers such
        as those in `held`. Exported with the model."""
        ...

    def reward_variance(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        """Variance of each member's reward by the posterior of its head; zeros where none was fitted."""
        ...

    def update(self, terms: Sequence[Term], lr: Mapping[str, float]) -> Metrics:
        """One optimizer step for every model named in `terms`. Raises `TrainingError`, before any weight changes, when a
        loss or a gradient is not finite."""
        ...

    def save_state(self, path: Path) -> None:
        """Weights and optimizer state of everything trainable, as safetensors."""
        ...

    def load_state(self, path: Path) -> None: ...

    def export(self, model: str, path: Path, **config: Any) -> None:
        """A Hugging Face folder; `config` entries are written into config.json, but `gain` scales a scalar head."""
        ...
