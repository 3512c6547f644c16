"""Frozen weights in a file instead of in memory that only they may have."""

from __future__ import annotations

import mmap
import tempfile

import torch
from torch import nn

from whelp.models.sources import cache_dir


class MappedWeights:
    """The parameters of a frozen module on a processor, moved into a file without a name that is mapped into memory.

    They are read as ever. Where memory is short the system may let go of them, and reads the file when they are next needed;
    `rest` lets go of them now.
    """

    def __init__(self, module: nn.Module):
        parameters = [p for p in module.parameters() if p.numel()]
        (folder := cache_dir()).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for parameter in parameters:
                file.write(parameter.detach().contiguous().view(torch.uint8).numpy().data)
            file.flush()
            self.mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        start = 0
        for parameter in parameters:
            size = parameter.numel()
            weights = torch.frombuffer(self.mapping, dtype=parameter.dtype, count=size, offset=start)
            parameter.data = weights.view(parameter.shape)
            start += size * parameter.element_size()

    def rest(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
