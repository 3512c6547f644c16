"""An engine on several processes: what it is asked is told to a crew, and every process does its part of it.

Who carries the words is the crew's business: torchrun's processes (`fsdp.py`) or Ray's actors (`ray.py`). What they say to each
other is pickled: they are one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import finalize

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.engines.base import Held, Metrics, ModelSpec, SamplingParams, Term
from whelp.engines.devices import Compute
from whelp.engines.held import own
from whelp.engines.sharded import ShardedEngine
from whelp.maths.outputs import TokenScores
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt, Sequences

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class DistributedHeld:
    """Sequences that all processes hold under `key`, and which rows of them. That is all it tells another."""

    def __init__(self, sequences: Sequences, key: int, rows: tuple[int, ...]):
        self.sequences, self.key, self.rows = sequences, key, rows

    def select(self, rows: Sequence[int]) -> DistributedHeld:
        return DistributedHeld(self.sequences.select(rows), self.key, tuple(self.rows[r] for r in rows))

    def __reduce__(self) -> tuple[Any, ...]:
        return DistributedHeld, (NOTHING, self.key, self.rows)


NOTHING = Sequences([], [])


@dataclass(frozen=True, slots=True)
class Told:
    """Something to do for an engine; `method` None: there is nothing more to do."""

    engine: int = 0
    method: str | None = None
    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    forgotten: tuple[int, ...] = ()
    """Engines that nobody uses any more."""


@runtime_checkable
class Crew(Protocol):
    forgotten: list[int]

    def tell(self, told: Told) -> Any:
        """Have all processes do it; what comes of it in the first."""
        ...


class Worker:
    """What one process does."""

    def __init__(self) -> None:
        self.engines: dict[int, ShardedEngine] = {}

    def do(self, told: Told) -> Any:
        for engine in told.forgotten:
            self.engines.pop(engine, None)
        if told.method == "make":
            chat, dtype, threads, temperature = told.arguments
            self.engines[told.engine] = ShardedEngine(chat, _compute(dtype, threads), temperature)
            return None
        engine = self.engines[told.engine]
        arguments = [_here(engine, argument) for argument in told.arguments]
        result = getattr(engine, str(told.method))(*arguments, **told.named)
        return list(result) if told.method == "sample" else result


def _compute(dtype: torch.dtype, threads: int) -> Compute:
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return Compute(device, dtype, threads, "one of several processes")


def _here(engine: ShardedEngine, argument: Any) -> Any:
    """What this process holds of it."""
    if isinstance(argument, DistributedHeld):
        return engine.shares[argument.key].of(argument.rows)
    if isinstance(argument, Term):
        return dataclasses.replace(argument, held=_here(engine, argument.held))
    if isinstance(argument, tuple):
        return tuple(_here(engine, one) for one in argument)
    return argument


class DistributedEngine:
    """See `Engine`."""

    ids = count()

    def __init__(self, crew: Crew, chat: Chat, compute: Compute, temperature: float = 1.0):
        self.chat, self.compute, self.temperature = chat, compute, temperature
        self.crew, self.id, self.keys = crew, next(self.ids), count()
        self.specs: dict[str, ModelSpec] = {}
        finalize(self, crew.forgotten.append, self.id)
        self._tell("make", chat, compute.dtype, compute.threads, temperature)

    def _tell(self, method: str, *arguments: Any, **named: Any) -> Any:
        forgotten = tuple(self.crew.forgotten)
        self.crew.forgotten.clear()
        return self.crew.tell(Told(self.id, method, arguments, named, forgotten))

    def add(self, name: str, spec: ModelSpec) -> None:
        self._tell("add", name, spec)
        self.specs[name] = spec

    def remove(self, name: str) -> None:
        self._tell("remove", name)
        del self.specs[name]

    def has(self, model: str) -> bool:
        return model in self.specs

    def config(self, model: str) -> PretrainedConfig:
        return self._tell("config", model)

    def notes(self, model: str) -> tuple[str, ...]:
        return self._tell("notes", model)

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        yield from self._tell("sample", model, list(prompts), params)

    @contextmanager
    def hold(self, sequences: Sequences) -> Iterator[DistributedHeld]:
        key = next(self.keys)
        self._tell("open", key, sequences)
        yield DistributedHeld(sequences, key, tuple(range(len(sequences))))
        self._tell("close", key)  # not behind an error, in which not all may have part

    def logprobs(self, model: str, held: Held) -> TokenScores:
        return self._tell("logprobs", model, own(held, DistributedHeld))

    def values(self, model: str, held: Held) -> Float[Tensor, "B R"]:
        return self._tell("values", model, own(held, DistributedHeld))

    def rewards(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        return self._tell("rewards", model, own(held, DistributedHeld))

    def fit_posterior(self, model: str, held: Held, pairs: float) -> None:
        self._tell("fit_posterior", model, own(held, DistributedHeld), pairs)

    def reward_variance(self, model: str, held: Held) -> Float[Tensor, "M B"]:
        return self._tell("reward_variance", model, own(held, DistributedHeld))

    def update(self, terms: Sequence[Term], lr: Mapping[str, float]) -> Metrics:
        for term in terms:
            own(term.held, DistributedHeld)
        return self._tell("update", tuple(terms), dict(lr))

    def save_state(self, path: Path) -> None:
        self._tell("save_state", path)

    def load_state(self, path: Path) -> None:
        self._tell("load_state", path)

    def export(self, model: str, path: Path, gain: float = 1.0, **config: Any) -> None:
        self._tell("export", model, path, gain, **config)
