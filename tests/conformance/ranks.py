"""A course of everything that an engine does, for engines of one process and of several.

    torchrun --nproc-per-node 2 tests/conformance/ranks.py MODEL FOLDER [--state FOLDER/state]

writes FOLDER/numbers.json; with `--state` the course goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from whelp.config import Recipe
from whelp.engines import launch
from whelp.engines.base import Engine, Held, ModelSpec, OptimizerSpec, SamplingParams, Term
from whelp.engines.devices import Compute
from whelp.errors import WhelpError
from whelp.maths.policy import PPOLoss, PPOTargets, ValueLoss, ValueTargets
from whelp.maths.preference import BradleyTerry, PreferenceTargets
from whelp.models.adapters import LoRA
from whelp.models.loading import load_tokenizer
from whelp.text.chat import Chat
from whelp.types import Message, Prompt, Sequences

LENGTHS = (9, 17, 4, 12, 12, 7, 30, 5)
GROUPS = (0, 0, 1, 1, 2, 2, 3, 3)
STEADY = OptimizerSpec(eps=1e-3, max_grad_norm=0.05)
PROMPTS = [
    Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(("hello there", "how are you", "the end"))
]
ROWS: dict[str, tuple[int, ...]] = {"all": tuple(range(8)), "one prompt": (4, 5), "uneven": (0, 1, 2, 3, 6, 7)}


def sequences() -> Sequences:
    generator = torch.Generator().manual_seed(0)
    tokens = [tuple(torch.randint(290, (n,), generator=generator).tolist()) for n in LENGTHS]
    masks = [tuple(t >= 2 * n // 3 or (n > 10 and 3 <= t < 5) for t in range(n)) for n in LENGTHS]
    return Sequences(tokens, masks, GROUPS)


def course(engine: Engine, model: Path, folder: Path, state: Path | None, trained: dict[str, Any]) -> dict[str, Any]:
    """Numbers of every kind; files of state and models go to `folder`. `trained`: which layers, and how."""
    learns = {**trained, "optimizer": STEADY}
    engine.add("policy", ModelSpec(model, **learns))
    engine.add("reference", ModelSpec(copy_of="policy", **trained))
    engine.add("value", ModelSpec(copy_of="policy", head="scalar", head_std=0.1, **learns))
    engine.add("reward", ModelSpec(model, head="scalar", members=2, **learns))
    if state is not None:
        engine.load_state(state)
    result: dict[str, Any] = {"metrics": []}
    with engine.hold(sequences()) as held:
        for name, rows in ROWS.items():
            result["metrics"].append(engine.update(terms(engine, held, rows), {"policy": 1e-3, "value": 1e-3}))
            pairs = Term("reward", held.select(rows), preferences(rows), BradleyTerry())
            result["metrics"].append(engine.update([pairs], {"reward": 1e-3}))
            result[name] = scores(engine, held.select(rows))
        engine.fit_posterior("reward", held, 4)
        result["variance"] = engine.reward_variance("reward", held).tolist()
        engine.add("twin", ModelSpec(copy_of="policy", **trained))
        engine.remove("reference")
        result["twin"] = engine.logprobs("twin", held).logprobs.tolist()
    params = SamplingParams(n=2, temperature=1.0, max_new_tokens=8, key=("course",))
    answers = sorted((c.prompt.id, c.sample, c.tokens, c.text) for c in engine.sample("policy", PROMPTS, params))
    result["answers"] = [list(map(str, answer)) for answer in answers]
    engine.save_state(folder / "state")
    engine.export("policy", folder / "policy")
    engine.export("reward", folder / "reward", gain=2.0)
    return result


def terms(engine: Engine, held: Held, rows: tuple[int, ...]) -> list[Term]:
    """A policy's and a value's, as PPO has them, from log-probabilities of before."""
    chosen = held.select(rows)
    before, values = engine.logprobs("reference", chosen), engine.values("value", chosen)
    generator = torch.Generator().manual_seed(len(rows))
    advantages = torch.randn(before.logprobs.shape, generator=generator) * before.is_response
    return [
        Term("policy", chosen, PPOTargets(before.logprobs, advantages, before.is_response), PPOLoss(0.2)),
        Term("value", chosen, ValueTargets(values, values + advantages, before.is_response), ValueLoss(0.2), 0.5),
    ]


def preferences(rows: tuple[int, ...]) -> PreferenceTargets:
    """The first of the two answers to each prompt is better."""
    order = torch.arange(len(rows))
    probability = torch.full((len(rows), 2), torch.nan)
    probability[0::2, 1], probability[1::2, 0] = 1.0, 0.0
    return PreferenceTargets(order // 2, order % 2, probability, torch.zeros(len(rows)), torch.ones(len(rows)))


def scores(engine: Engine, held: Held) -> dict[str, Any]:
    policy, reference = engine.logprobs("policy", held), engine.logprobs("reference", held)
    assert policy.entropy is not None
    return {
        "logprobs": policy.logprobs.tolist(), "entropy": policy.entropy.tolist(),
        "is_response": policy.is_response.tolist(), "reference": reference.logprobs.tolist(),
        "values": engine.values("value", held).tolist(), "rewards": engine.rewards("reward", held).tolist(),
    }  # fmt: skip


def mistakes(engine: Engine, model: Path) -> dict[str, Any]:
    """What is said of them, and log-probabilities before and after."""
    engine.add("policy", ModelSpec(model, trainable_layers=2, optimizer=STEADY))
    engine.add("reference", ModelSpec(copy_of="policy", trainable_layers=2))
    engine.add("value", ModelSpec(copy_of="policy", head="scalar", trainable_layers=2, optimizer=STEADY))
    result = {}
    with engine.hold(sequences()) as held:
        result["before"] = engine.logprobs("policy", held).logprobs.tolist()
        term, _ = terms(engine, held, ROWS["one prompt"])
        term.targets.advantages[0, 0] = torch.nan
        for name, wrong in {
            "unknown": lambda: engine.add("copy", ModelSpec(copy_of="nobody")),
            "not finite": lambda: engine.update([term], {"policy": 1e-3}),
        }.items():
            try:
                wrong()
            except WhelpError as error:
                result[name] = str(error)
        result["after"] = engine.logprobs("policy", held).logprobs.tolist()
    return result


def read(arguments: Sequence[str]) -> tuple[Any, ...]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", default="2")
    parser.add_argument("--lora", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--state", type=Path)
    given = parser.parse_args(arguments)
    layers = given.layers if given.layers == "all" else int(given.layers)
    trained = {"trainable_layers": layers, "lora": LoRA(given.lora, 2.0 * given.lora) if given.lora else None}
    return given.model, given.folder, trained, given.dtype, given.state


def run(make: Any, model: Path, folder: Path, trained: dict[str, Any], dtype: str, state: Path | None) -> None:
    compute, chat = Compute(torch.device("cpu"), getattr(torch, dtype), 1, "tests"), Chat(load_tokenizer(model))
    numbers = course(make(chat, compute), model, folder, state, trained)
    numbers["mistakes"] = mistakes(make(chat, compute), model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    launch.run(lambda: run(launch.maker_of(Recipe(engine="fsdp")), *read(sys.argv[1:])))
