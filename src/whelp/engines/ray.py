"""The engine on Ray: learners that share the layers (`engines/sharded.py`), and samplers that answer prompts.

A sampler has the weights of the version that is asked for, or its answers are refused. It is replaced where it dies, and its
prompts are answered again, to the same answers. A learner that dies ends the run at its last checkpoint.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from whelp.engines.base import Metrics, ModelSpec, SamplingParams, Term
from whelp.engines.crew import DistributedEngine, Told, Worker
from whelp.engines.devices import Compute
from whelp.engines.fsdp import TOGETHER, join
from whelp.engines.local import LocalEngine
from whelp.errors import RunError
from whelp.text.chat import Chat
from whelp.types import Completion, Prompt

WAIT = TOGETHER.total_seconds()
START = 300.0
"""Seconds until a process has to be there."""
REPLACED = 10
"""Samplers that may die during one call before it is given up."""


class Learner:
    """One of the processes that share the layers."""

    def __init__(self) -> None:
        self.worker = Worker()

    def address(self) -> str:
        """Where the others can meet this one."""
        with closing(socket.socket()) as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, rank: int, size: int, address: str) -> None:
        join(0, init_method=address, rank=rank, world_size=size)

    def do(self, told: Told) -> Any:
        result = self.worker.do(told)
        return result if torch.distributed.get_rank() == 0 else None


class Answerer:
    """A sampler: models of an engine that are language models, without what trains them."""

    def __init__(self, chat: Chat, dtype: torch.dtype, threads: int, temperature: float):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.engine = LocalEngine(chat, Compute(device, dtype, threads, "a sampler"), temperature)
        self.versions: dict[str, int] = {}

    def add(self, name: str, spec: ModelSpec) -> None:
        self.engine.add(name, dataclasses.replace(spec, optimizer=None, lora=None))
        self.versions[name] = 0

    def remove(self, name: str) -> None:
        self.engine.remove(name)

    def load(self, name: str, version: int, weights: Sequence[Mapping[str, Tensor]]) -> None:
        member = self.engine.models[name].members[0]
        for part, state in zip((member.branch, member.head), weights, strict=False):
            part.load_state_dict(state)
        self.versions[name] = version

    def sample(self, name: str, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[int, list[Completion]]:
        return self.versions[name], list(self.engine.sample(name, prompts, params))


class Learners:
    """See `Crew`."""

    def __init__(self, count: int):
        self.forgotten: list[int] = []
        bundle = {"CPU": 1.0, "GPU": 1.0} if _has_gpus() else {"CPU": 1.0}
        group = placement_group([bundle] * count, strategy="PACK")
        if not group.wait(START):
            raise RunError(
                f"Ray has no room for {count} learners of {bundle} ({ray.cluster_resources()}): lower ray.learners, or give "
                "RAY_ADDRESS of a larger cluster."
            )
        kind = ray.remote(num_cpus=1, num_gpus=bundle.get("GPU", 0.0))(Learner)
        place = PlacementGroupSchedulingStrategy(group)
        self.actors = [kind.options(scheduling_strategy=place).remote() for _ in range(count)]
        address = self._get([self.actors[0].address.remote()])[0]
        self._get([actor.join.remote(rank, count, address) for rank, actor in enumerate(self.actors)])

    def tell(self, told: Told) -> Any:
        return self._get([actor.do.remote(told) for actor in self.actors])[0]

    def _get(self, refs: Sequence[Any]) -> list[Any]:
        try:
            left, found = list(refs), {}
            while left:  # the first that fails is heard of, not the first in order
                done, left = ray.wait(left, num_returns=1, timeout=WAIT)
                if not done:
                    raise RunError(
                        f"the learners have said nothing for {WAIT:.0f} seconds; stop, and go on with --resume."
                    )
                found[done[0]] = ray.get(done[0], timeout=WAIT)
            return [found[ref] for ref in refs]
        except RayActorError as error:
            raise RunError(
                f"a learner died ({str(error).splitlines()[0]}); the run ends at its last checkpoint, and --resume goes on."
            ) from error
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None


class RayEngine(DistributedEngine):
    """See `Engine`. `chat` renders prompts and decodes answers."""

    def __init__(self, chat: Chat, compute: Compute, temperature: float = 1.0, learners: int = 1, samplers: int = 1):
        beside = max(1, compute.threads // max(learners, samplers))
        super().__init__(_learners(learners), chat, dataclasses.replace(compute, threads=beside), temperature)
        self.versions: dict[str, int] = {}
        self.samplers = [self._sampler() for _ in range(samplers)]
        self.loaded: list[dict[str, int]] = [{} for _ in self.samplers]
        """The version of each model in each sampler."""

    def _sampler(self) -> Any:
        kind = ray.remote(num_cpus=0, num_gpus=1.0 if _has_gpus() else 0.0)(Answerer)
        actor = kind.remote(self.chat, self.compute.dtype, self.compute.threads, self.temperature)
        for name, spec in self.specs.items():
            if spec.head == "lm":
                actor.add.remote(name, spec)
        return actor

    def add(self, name: str, spec: ModelSpec) -> None:
        super().add(name, spec)
        # A copy of what has learned is made of what it is now.
        self.versions[name] = 0 if spec.copy_of is None else self.versions.get(spec.copy_of, 0)
        if spec.head == "lm":
            for actor, loaded in zip(self.samplers, self.loaded, strict=True):
                actor.add.remote(name, spec)
                loaded[name] = 0

    def remove(self, name: str) -> None:
        super().remove(name)
        for actor, loaded in zip(self.samplers, self.loaded, strict=True):
            if loaded.pop(name, None) is not None:
                actor.remove.remote(name)

    def update(self, terms: Sequence[Term], lr: Mapping[str, float]) -> Metrics:
        metrics = super().update(terms, lr)
        self._learned({term.model for term in terms})
        return metrics

    def load_state(self, path: Path) -> None:
        super().load_state(path)
        self._learned(name for name, spec in self.specs.items() if spec.optimizer is not None)

    def _learned(self, names: Any) -> None:
        for name in names:
            spec = self.specs[name]
            for moved in {name, spec.copy_of} if spec.shares_branch else {name}:
                self.versions[moved] = self.versions.get(moved, 0) + 1

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        """In the order in which samplers finish."""
        version = self.versions[model]
        weights = cache(lambda: ray.put(self._tell("weights", model)))  # gathered where a sampler lacks them
        waiting = {}
        for place in range(len(self.samplers)):
            if mine := list(prompts[place :: len(self.samplers)]):
                waiting[self._ask(place, model, mine, params, version, weights)] = (place, mine)
        deaths = 0
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=WAIT)
            if not done:
                raise RunError(f"no sampler has answered for {WAIT:.0f} seconds; stop, and go on with --resume.")
            place, mine = waiting.pop(done[0])
            try:
                stamp, completions = ray.get(done[0], timeout=WAIT)
            except (RayActorError, GetTimeoutError) as error:
                deaths += 1
                if deaths > REPLACED:
                    raise RunError(
                        f"{deaths} samplers died in one call ({error}); the run ends at its last checkpoint."
                    ) from error
                self.samplers[place], self.loaded[place] = self._sampler(), {}
                waiting[self._ask(place, model, mine, params, version, weights)] = (place, mine)
                continue
            if stamp != version:
                raise RunError(f"a sampler answered with version {stamp} of {model!r}; expected {version}.")
            yield from completions

    def _ask(
        self,
        place: int,
        model: str,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        version: int,
        weights: Callable[[], Any],
    ) -> Any:
        if self.loaded[place].get(model, 0) != version:
            self.samplers[place].load.remote(model, version, weights())
            self.loaded[place][model] = version
        return self.samplers[place].sample.remote(model, prompts, params)


def _has_gpus() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


_crews: dict[int, Learners] = {}


def _learners(count: int) -> Learners:
    """So many, started by the first call: on the cluster of RAY_ADDRESS, or on one of this machine alone."""
    if count not in _crews:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=None if "RAY_ADDRESS" in os.environ else False)
        _crews[count] = Learners(count)
    return _crews[count]
