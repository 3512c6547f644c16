"""The exact world of tests/conformance with whelp's PPO and with TRL's, whose last release with a PPO is 1.12.0.

    python benchmarks/peer.py              three seeds of each, as far as they are not recorded, and the table in docs/ppo.md
    python benchmarks/peer.py --seeds 0    one seed

TRL is installed into an environment of its own, once (about 1 GB).

Both start from the same model and see as many answers with the same step sizes; TRL runs as it is, once with its own lambda of
0.95, once with 1, and once with its other KL estimator. It takes a sampled pad token for the end of an answer, so that both are
measured on the answers without one.

The leash alone: nothing is rewarded, the policy is another model than its reference, and the gradient that PPO makes of 8,192
answers is held against that of the enumerated KL. 1 is the same direction; sampling leaves a little less.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from environments import PPO, python_of
from exact_gradient import LanguageModel, cosine, kl_gradient
from results import RECORDS, ROOT, write_between
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from exact_world import (
    ANSWERS,
    BATCH,
    END,
    PROMPTS,
    RECIPE,
    World,
    log_probabilities,
    log_probabilities_in,
    make_chat,
    save_model,
    spread,
    total_variation,
    train,
)
from torch import Tensor

from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.metrics import MetricsLog

PAD = 0
WITHOUT_PAD = torch.tensor([PAD not in answer for answer in ANSWERS])
KL_COEF = 0.5
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1, "one thread for each")
AWAY = 0.05
ONE_STEP = {"total_episodes": 8 * BATCH, "batch_size": 8 * BATCH, "num_mini_batches": 1, "critic_warmup_iterations": 0}
KL = "cosine with the gradient of the KL"
TRL = {"TRL, lam 1": {"lam": 1.0}, "TRL, lam 0.95": {"lam": 0.95}, "TRL, k3": {"lam": 1.0, "kl_estimator": "k3"}}


def measured(log_pi: Tensor, log_ref: Tensor, world: World, logged_kl: float, seconds: float) -> dict[str, float]:
    """Of the answers without a pad token, under distributions conditioned on having none."""
    log_pi, log_ref = (_without_pad(log_p) for log_p in (log_pi, log_ref))
    world = World(world.rewards[:, WITHOUT_PAD], world.kl_coef)
    log_star = world.optimum(log_ref)
    return {
        "total variation before": total_variation(log_ref, log_star),
        "total variation after": total_variation(log_pi, log_star),
        "std of the leashed reward": spread(world.leashed(log_pi, log_ref), log_star),
        "last logged KL": logged_kl,
        "enumerated KL": float((log_pi.exp() * (log_pi - log_ref)).sum(1).mean()),
        "seconds": seconds,
    }


def _without_pad(log_p: Tensor) -> Tensor:
    return torch.log_softmax(log_p[:, WITHOUT_PAD], dim=1)


def run_whelp(folder: Path, world: World, seed: int, out: Path) -> dict[str, float]:
    start = time.perf_counter()
    engine = train(folder, make_chat(), COMPUTE, out, world, seed)
    seconds = time.perf_counter() - start
    log_pi, log_ref = log_probabilities(engine, "policy"), log_probabilities(engine, "reference")
    return measured(log_pi, log_ref, world, MetricsLog.read(out / "metrics.jsonl")[-1]["objective/kl"], seconds)


def run_trl(python: Path, folder: Path, world: World, seed: int, out: Path, own: dict[str, Any]) -> dict[str, float]:
    chat, episodes = make_chat(), int(str(RECIPE["total_episodes"]))
    world_file(folder, world)
    settings = {
        "batch_size": BATCH, "mini_batch_size": BATCH // 8, "total_episodes": episodes,
        "learning_rate": RECIPE["learning_rate"],
        "warmup_steps": episodes // BATCH // 5, "num_ppo_epochs": 1, "kl_coef": world.kl_coef, "cliprange_value": 10.0,
        "vf_coef": 1.0, "adam_epsilon": 1e-5, "seed": seed,
    }  # fmt: skip
    start = time.perf_counter()
    lines = call_trl(python, folder, settings | own, out)
    seconds = time.perf_counter() - start
    log = [line["objective/kl"] for line in lines if "objective/kl" in line]
    chat.tokenizer.save_pretrained(out)
    log_pi, log_ref = (log_probabilities_in(source, chat, COMPUTE) for source in (out, folder))
    return measured(log_pi, log_ref, world, log[-1], seconds)


def world_file(folder: Path, world: World) -> None:
    prompts = [list(make_chat().prompt(prompt)) for prompt in PROMPTS]
    description = {
        "prompts": prompts, "answers": ANSWERS, "rewards": world.rewards.tolist(), "end": END, "response_length": 2,
    }  # fmt: skip
    write_json_atomic(folder / "world.json", description)


def call_trl(python: Path, folder: Path, settings: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """What it logged."""
    script = Path(__file__).with_name("peer_trl.py")
    subprocess.run([str(python), str(script), str(folder), json.dumps(settings), str(out)], check=True)
    return json.loads((out / "log.json").read_text())


def trl_kl_cosine(python: Path, folder: Path, start: Path, seed: int, out: Path, own: dict[str, Any]) -> float:
    world_file(folder, World(torch.zeros(len(PROMPTS), len(ANSWERS)), 1.0))
    count = ONE_STEP["batch_size"]
    settings = {
        "start": str(start), "batch_size": count, "mini_batch_size": count, "total_episodes": count, "learning_rate": 0.1,
        "warmup_steps": 0, "num_ppo_epochs": 1, "kl_coef": 1.0, "vf_coef": 1.0, "seed": seed,
    }  # fmt: skip
    return call_trl(python, folder, settings | own, out)[0]["cosine"]


def other_model(folder: Path, where: Path, seed: int) -> Path:
    """One that is about half a nat away from that of `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += AWAY * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(where)
    make_chat().tokenizer.save_pretrained(where)
    return where


def whelp_kl_cosine(folder: Path, start: Path, seed: int, out: Path) -> float:
    chat = make_chat()
    prompts = [list(chat.prompt(prompt)) for prompt in PROMPTS]
    exact: list[Tensor] = []
    found: list[Tensor] = []

    def watch(engine: LocalEngine) -> None:
        weights = engine.models["policy"].weights
        assert weights is not None

        def note() -> float:
            found.extend(torch.zeros_like(m) if m.grad is None else m.grad.clone() for m in weights.masters)
            return 0.0

        policy, reference = (_whole(engine, name) for name in ("policy", "reference"))
        exact.extend(kl_gradient(policy, reference, weights.masters, prompts, ANSWERS, END))
        weights.clip = note

    nothing = World(torch.zeros(len(PROMPTS), len(ANSWERS)), 1.0)
    train(start, chat, COMPUTE, out, nothing, seed, watch, folder, **ONE_STEP)  # pyright: ignore[reportArgumentType]
    return cosine(found, exact)


def _whole(engine: LocalEngine, name: str) -> LanguageModel:
    member = engine.models[name].members[0]

    def forward(tokens: Tensor) -> SimpleNamespace:
        hidden = member.branch(tokens, use_cache=False)
        return SimpleNamespace(logits=member.head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]))

    return forward


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean over seeds, and the range."""
    lines = [["", *results], ["---"] * (1 + len(results))]
    for name in next(iter(results.values()))[0]:
        cells = []
        for runs in results.values():
            values = [run[name] for run in runs]
            digits = 0 if name == "seconds" else 3
            cells.append(
                f"{math.fsum(values) / len(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
            )
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(python: Path, seed: int) -> dict[str, dict[str, float]]:
    """What each of them measured, by name."""
    world = World.random(seed, KL_COEF)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "start"
        save_model(folder, make_chat(), seed)
        results = {"whelp": run_whelp(folder, world, seed, Path(scratch) / "whelp")}
        for name, own in TRL.items():
            results[name] = run_trl(python, folder, world, seed, new_folder(scratch), own)
        start = other_model(folder, Path(scratch) / "other", seed)
        results["whelp"][KL] = whelp_kl_cosine(folder, start, seed, Path(scratch) / "whelp-kl")
        for name, own in TRL.items():
            results[name][KL] = trl_kl_cosine(python, folder, start, seed, new_folder(scratch), own)
    return results


def new_folder(parent: str) -> Path:
    return Path(tempfile.mkdtemp(dir=parent))


def record(seed: int) -> Path:
    return RECORDS / f"peer-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    python = python_of(PPO)
    for seed in options.seeds:
        if not record(seed).exists():
            write_json_atomic(record(seed), run(python, seed))
    records = [read_json(record(seed)) for seed in options.seeds]
    text = table({name: [found[name] for found in records] for name in records[0]})
    write_between(ROOT / "docs" / "ppo.md", "peer", text)
    print(text)


if __name__ == "__main__":
    main()
