"""The engine on the processes that torchrun started (`torchrun --nproc-per-node N -m whelp run ...`): the first runs the command,
and tells the others what its engine is asked."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from whelp.engines.crew import DistributedEngine, Told, Worker
from whelp.engines.devices import Compute
from whelp.errors import WhelpError
from whelp.text.chat import Chat

TOGETHER = timedelta(minutes=30)
"""For what processes do at the same time: one that has not come by then is dead or stuck."""
IDLE = timedelta(days=7)
"""How long the others wait for the first, which has work of its own: rewards that are functions, pages, people."""


class Processes:
    """This process among the others; see `Crew`."""

    def __init__(self) -> None:
        join(int(os.environ.get("LOCAL_RANK", "0")))
        self.words: Any = dist.new_group(backend="gloo", timeout=IDLE)
        self.worker = Worker()
        self.forgotten: list[int] = []

    @property
    def is_first(self) -> bool:
        return dist.get_rank() == 0

    def tell(self, told: Told) -> Any:
        dist.broadcast_object_list([told], 0, self.words)
        return self.worker.do(told)

    def serve(self) -> None:
        """Do what the first process says until it says that there is nothing more."""
        for name in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # the first decides when to stop, and writes what there is to write
            signal.signal(name, signal.SIG_IGN)
        while (told := self._heard()).method is not None:
            with suppress(WhelpError):  # the first has the same, and tells it to whom it concerns
                self.worker.do(told)

    def _heard(self) -> Told:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, 0, self.words)
        return box[0]

    def end(self) -> None:
        if self.is_first:
            dist.broadcast_object_list([Told()], 0, self.words)
        self.worker.engines.clear()
        dist.barrier()
        dist.destroy_process_group()


def join(device: int, **where: Any) -> None:
    """Meet the other processes; `where` is as `init_process_group` has it, or what torchrun says."""
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TOGETHER, **where)


class FsdpEngine(DistributedEngine):
    """See `Engine`. `chat` renders prompts and decodes answers."""

    def __init__(self, chat: Chat, compute: Compute, temperature: float = 1.0):
        super().__init__(processes(), chat, compute, temperature)


_processes: Processes | None = None


def processes() -> Processes:
    """Those that torchrun started; joined by the first call."""
    global _processes
    if _processes is None:
        _processes = Processes()
    return _processes
