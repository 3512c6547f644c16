"""How this process was started, by itself or by torchrun beside others, and which engine computes then."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from whelp.errors import ConfigError

if TYPE_CHECKING:
    from whelp.config import Recipe
    from whelp.engines.base import Engine


def size() -> int:
    """Of the processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def maker_of(recipe: Recipe) -> Callable[..., Engine]:
    """Makes engines of a chat, a `Compute` and a temperature. Raises `ConfigError` where torchrun or Ray is missing, or was used
    in vain."""
    name = recipe.engine
    if name == "ray":
        try:
            from whelp.engines.ray import RayEngine
        except ImportError as error:
            raise ConfigError("engine: ray needs Ray, which is not installed; pip install 'whelp[ray]'.") from error
        return partial(RayEngine, learners=recipe.ray.learners, samplers=recipe.ray.samplers)
    if name == "local" or (name == "auto" and size() == 1):
        if size() > 1:
            raise ConfigError(
                "engine: local is one process, but torchrun started several; expected engine: fsdp or auto."
            )
        from whelp.engines.local import LocalEngine

        return LocalEngine
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "engine: fsdp computes in the processes that torchrun starts, and none did; expected torchrun "
            "--nproc-per-node 2 -m whelp run ..., or engine: local."
        )
    from whelp.engines.fsdp import FsdpEngine

    return FsdpEngine


def run(command: Callable[[], object]) -> None:
    """The command, in the first of the processes; the others compute with it until it ends."""
    if size() == 1:
        command()
        return
    from whelp.engines.fsdp import processes

    group = processes()
    try:
        command() if group.is_first else group.serve()
    except SystemExit:  # the command's own end, with the others waiting for what comes next
        group.end()
        raise
    group.end()  # not behind any other error: the others may be in the middle of something, and torchrun ends them
