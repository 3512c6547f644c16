"""Which device, which number format and how many threads, and why."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import torch

from whelp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Compute:
    """Where and in what the engine computes. Trainable weights, optimizer and losses are fp32 whatever `dtype` is."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    why: str


def choose(device: str = "auto", dtype: str = "auto") -> Compute:
    """Resolve "auto"; raises `ConfigError` for a device that is not there."""
    chosen, device_reason = _device(device)
    number_format, dtype_reason = _dtype(dtype, chosen)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
    threads = max(1, physical_cores() // beside)
    counted = f"{threads} thread{'s' * (threads > 1)}, one a physical core"
    return Compute(chosen, number_format, threads, f"{device_reason}; {dtype_reason}; {counted}")


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"CUDA is available, {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "MPS is available"
        return torch.device("cpu"), "no accelerator was found"
    device = torch.device(name)
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(f"device {name!r} was asked for and is not here. Use device: auto or device: cpu.")
    return device, f"device {name} was asked for"


def _dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    if name != "auto":
        formats = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        if name not in formats:
            raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(formats)}.")
        return formats[name], f"{name} was asked for"
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported()
    elif device.type == "mps":
        supported = False
    else:
        supported = cpu_has_bf16()
    if supported:
        return torch.bfloat16, "bfloat16, which the processor multiplies natively"
    return torch.float32, "float32, because the processor has no native bfloat16"


def cpu_has_bf16() -> bool:
    """True with AVX512-BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def physical_cores() -> int:
    """Physical cores that this process may run on; two hyper-threads of one core count once."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                cores.add(file.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def release_memory() -> None:
    """Hand freed memory back to the system. glibc keeps it in the heap between blocks that live, which grows by gigabytes
    where batches differ in shape; other C libraries have no such call and need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
