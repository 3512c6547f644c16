"""The limit of a race: its matrix products and nothing else, with weights of their own for every layer so that no cache holds
them. `python limit.py WORK SIDE`, like the racers.

Left out are attention, norms, the softmax over the vocabulary, the optimizer and everything that moves data: no program can
leave them out, so 100% cannot be reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import Turns, asked

from whelp.models.layout import shared

ROWS = 1024
"""Tokens in one product of a forward or backward pass: as many as whelp trains on at once."""


class Products:
    def __init__(self, config: dict[str, Any], dtype: torch.dtype):
        width, inner = config["hidden_size"], config["intermediate_size"]
        keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
        attention = [(width, width), (width, keys), (width, keys), (width, width)]
        shapes = [*attention, (width, inner), (width, inner), (inner, width)]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = dtype
        self.layers = [[self.random(o, i) for i, o in shapes] for _ in range(config["num_hidden_layers"])]
        self.head = self.random(config["vocab_size"], width)
        self.inputs: dict[int, Tensor] = {}
        """Random rows, by their width."""
        self.multiplied = 0
        """Multiplications and additions so far."""

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def times(self, a: Tensor, b: Tensor) -> None:
        torch.mm(a, b)
        self.multiplied += 2 * a.shape[0] * a.shape[1] * b.shape[1]

    def forward(self, rows: int, layers: int) -> None:
        for weight in self.of(layers):
            self.times(self.some(rows, weight.shape[1]), weight.T)

    def backward(self, rows: int, layers: int) -> None:
        """The gradients of the inputs and of the weights."""
        for weight in self.of(layers):
            gradient = self.some(rows, weight.shape[0])
            self.times(gradient, weight)
            self.times(gradient.T, self.some(rows, weight.shape[1]))

    def logits(self, rows: int, learn: bool) -> None:
        """The head is frozen: nothing but the gradient of its inputs is needed."""
        self.times(self.some(rows, self.head.shape[1]), self.head.T)
        if learn:
            self.times(self.some(rows, self.head.shape[0]), self.head)

    def of(self, layers: int) -> Iterator[Tensor]:
        """The weights of the last `layers` layers."""
        for layer in self.layers[len(self.layers) - layers :]:
            yield from layer

    def some(self, rows: int, width: int) -> Tensor:
        if width not in self.inputs:
            self.inputs[width] = self.random(ROWS, width)
        return self.inputs[width][:rows]


def in_blocks(rows: int) -> list[int]:
    return [ROWS] * (rows // ROWS) + [rows % ROWS] * bool(rows % ROWS)


def needed(work: dict[str, Any]) -> int:
    """Tokens that differ: what the sequences of a group begin with is computed once."""
    return sum(map(len, work["tokens"])) - sum(shared(work["tokens"], work["group"]))


def decode(products: Products, work: dict[str, Any], layers: int) -> None:
    lengths = work["lengths"]
    for rows in in_blocks(sum(map(len, work["prompts"]))):
        products.forward(rows, len(products.layers))
    for step in range(max(lengths)):
        live = sum(length > step for length in lengths)
        products.logits(live, learn=False)
        if step:
            products.forward(live, len(products.layers))


def forward(products: Products, work: dict[str, Any], layers: int) -> None:
    for rows in in_blocks(needed(work)):
        products.forward(rows, len(products.layers))
    for rows in in_blocks(sum(map(sum, work["is_response"]))):
        products.logits(rows, learn=False)


def train_sft(products: Products, work: dict[str, Any], layers: int) -> None:
    """The layers below those that learn run once, whatever the number of epochs."""
    below = len(products.layers) - layers
    tokens, responses = needed(work), sum(map(sum, work["is_response"]))
    for rows in in_blocks(tokens):
        products.forward(rows, below)
    for _ in range(work["epochs"]):
        for rows in in_blocks(tokens):
            products.forward(rows, layers)
            products.backward(rows, layers)
        if work["kind"] == "sft":
            for rows in in_blocks(responses):
                products.logits(rows, learn=True)


KINDS: dict[str, Callable[[Products, dict[str, Any], int], None]] = {
    "decode": decode,
    "forward": forward,
    "sft": train_sft,
    "reward": train_sft,
}


def main() -> None:
    turns = Turns()
    work, side = asked()
    torch.set_num_threads(work["threads"])
    products = Products(json.loads((Path(work["model"]) / "config.json").read_text()), getattr(torch, work["dtype"]))
    layers = side.get("layers", len(products.layers))
    while True:
        turns.wait()
        products.multiplied = 0
        KINDS[work["kind"]](products, work, layers)
        if products.device == "cuda":
            torch.cuda.synchronize()
        turns.done(multiplied=products.multiplied)


if __name__ == "__main__":
    main()
