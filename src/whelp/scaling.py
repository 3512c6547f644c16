"""What a PPO iteration takes of memory and time, role by role, on one process or on many: arithmetic, no run.

Multiplications are counted as in Kaplan et al. 2020 (2 a weight and token forwards, 4 backwards). The constants of this module
were fitted to `benchmarks/growth.py`; `tests/unit/test_scaling.py` holds the predictions to the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9
ADAM = 16
"""Bytes of a weight that is trained: its fp32 master, its gradient, and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama-like model."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    is_tied: bool = True
    """Whether one table embeds tokens and predicts them."""

    @property
    def layer(self) -> float:
        """Weights of one layer."""
        share = self.key_value_heads / self.heads
        return self.hidden * self.hidden * (2 + 2 * share) + 3 * self.hidden * self.inner

    @property
    def table(self) -> float:
        return self.hidden * self.vocabulary

    @property
    def beside(self) -> float:
        """Weights beside the layers."""
        return self.table * (1 if self.is_tied else 2)

    @property
    def total(self) -> float:
        return self.layer * self.layers + self.beside

    @property
    def cached(self) -> float:
        """Numbers that the cache of keys and values keeps of a token."""
        return 2 * self.layers * self.hidden * self.key_value_heads / self.heads


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Of a model by its config.json."""
    text = config.get("text_config", config)
    hidden, heads = text.get("hidden_size") or text["n_embd"], text.get("num_attention_heads") or text["n_head"]
    return Shape(
        hidden,
        text.get("num_hidden_layers") or text["n_layer"],
        heads,
        text.get("num_key_value_heads") or heads,
        text.get("intermediate_size") or 4 * hidden,
        text["vocab_size"],
        text.get("tie_word_embeddings", True),
    )


SHAPES = {
    "135m": Shape(576, 30, 9, 3, 1536, 49_152),
    "1.7b": Shape(2048, 24, 32, 32, 8192, 49_152),
    "8b": Shape(4096, 32, 32, 8, 14_336, 128_256, is_tied=False),
    "70b": Shape(8192, 80, 64, 8, 28_672, 128_256, is_tied=False),
}
"""SmolLM2's and Llama 3's."""


@dataclass(frozen=True, slots=True)
class Work:
    """An iteration of PPO."""

    rows: int = 128
    prompt: int = 45
    response: int = 48
    epochs: int = 4
    trainable_layers: int | None = None
    """None: all."""
    slots: int = 64
    """Rows decoded together, by each process."""
    piece: int = 1024
    """Tokens computed at one time with gradients."""

    @property
    def tokens(self) -> int:
        return self.rows * (self.prompt + self.response)


@dataclass(frozen=True, slots=True)
class Machine:
    """One of the devices."""

    compute: float
    """Multiplications and additions a second that training and scoring reach, not the maker's figure."""
    decode: float
    """The same where one token a row is computed, `slots` rows together."""
    bandwidth: float
    """Bytes a second from its memory."""
    overhead: float
    """Seconds to start one layer's kernels, which decoding pays for every token."""
    link: float
    """Bytes a second to the other devices."""
    number: int = 2
    """Bytes of a number that it computes with: 2 is bfloat16."""
    libraries: float = 0.7 * GB
    """What a process takes before it has a model."""


LAPTOP = Machine(compute=148e9, decode=33e9, bandwidth=20e9, overhead=7e-3, link=1e9, number=4)
"""Two cores of an EPYC in float32, fitted to six of the points that were measured; the other seven were predicted."""
H100 = Machine(compute=350e12, decode=200e12, bandwidth=2.5e12, overhead=50e-6, link=200e9, libraries=1.5 * GB)
"""A guess from its maker's figures and what others report of it; nothing was measured."""


def memory(shape: Shape, work: Work, machine: Machine, devices: int = 1) -> dict[str, float]:
    """Bytes of each device. Layers are shared by the devices, what stands beside them is whole in each."""
    n, b = devices, machine.number
    trained = min(work.trainable_layers or shape.layers, shape.layers)
    branch, trunk = shape.layer * trained, shape.layer * (shape.layers - trained)
    is_whole = trained == shape.layers
    # Where a process is alone in float32 a trained weight is its own master.
    each = ADAM if n > 1 or b == 4 else ADAM + b
    tables = shape.beside * (each if is_whole else b)
    gathered = shape.layer * b * 2 if n > 1 else 0.0
    rows = min(work.slots, math.ceil(work.rows / n))
    activations = work.piece * shape.hidden * trained * 34 * b / 2
    logits = min(work.piece, 512) * shape.vocabulary * (b + 4)
    return {
        "libraries": machine.libraries,
        "frozen trunk": trunk * b / n + (0.0 if is_whole else shape.beside * b),
        "policy": branch * each / n + (tables if is_whole else 0.0),
        "reference": branch * b / n + (shape.beside * b if is_whole else 0.0),
        "critic": branch * each / n + (tables if is_whole else 0.0),
        "reward model": branch * b / n + (shape.beside * b if is_whole else 0.0),
        "held activations": (0.0 if is_whole else work.tokens * shape.hidden * b / n),
        "a piece with gradients": activations + logits + gathered,
        "sampling": shape.cached * b * rows * (work.prompt + work.response)
        + (shape.layer * shape.layers * b if n > 1 else 0.0),
    }


def peak(shape: Shape, work: Work, machine: Machine, devices: int = 1) -> float:
    """Bytes of each device at the most: while it learns, samples or reads. A process that is alone has a second copy of the
    model for a moment while the reward model is read; of several each reads a model whole before it shares it."""
    parts = memory(shape, work, machine, devices)
    sampling, learning = parts.pop("sampling"), parts.pop("a piece with gradients")
    loading = shape.total * machine.number
    return sum(parts.values()) + max(sampling, learning, loading)


def operations(shape: Shape, work: Work) -> dict[str, float]:
    """Multiplications and additions of an iteration, over all devices."""
    trained = min(work.trainable_layers or shape.layers, shape.layers)
    branch, trunk, layers = shape.layer * trained, shape.layer * (shape.layers - trained), shape.layer * shape.layers
    response = work.rows * work.response
    head = shape.table * (3 if trained == shape.layers else 2)  # a frozen one gives no gradient of its weights
    return {
        "decode": 2 * (layers + shape.table) * response,
        "prefill": 2 * layers * work.rows * work.prompt,
        "score": 2 * (trunk + 4 * branch) * work.tokens + 2 * 2 * shape.table * response,
        "learn": work.epochs * (2 * 6 * branch * work.tokens + 2 * head * response),
    }


def seconds(shape: Shape, work: Work, machine: Machine, devices: int = 1) -> dict[str, float]:
    """Of each phase of an iteration. What devices say to each other is not hidden behind what they compute: an upper bound."""
    found, n = operations(shape, work), devices
    steps = math.ceil(math.ceil(work.rows / n) / work.slots) * work.response
    reading = shape.total * machine.number / machine.bandwidth
    decode = max(found["decode"] / machine.decode / n, steps * reading) + steps * shape.layers * machine.overhead
    result = {
        "sample": decode + found["prefill"] / machine.compute / n,
        "score": found["score"] / machine.compute / n,
        "learn": found["learn"] / machine.compute / n,
    }
    if n > 1:
        trained = min(work.trainable_layers or shape.layers, shape.layers)
        pieces = math.ceil(work.tokens / (n * work.piece))
        whole, learned = shape.layer * shape.layers * machine.number, shape.layer * trained * machine.number
        passes = (
            whole * (1 + pieces) + 3 * learned * pieces
        )  # gathered to sample, for the trunk, and for three more branches
        # forwards and backwards of two models, and their gradients in float32
        passes += work.epochs * pieces * 2 * learned * (2 + 4 / machine.number)
        result["talk"] = passes * (n - 1) / n / machine.link
    return result
