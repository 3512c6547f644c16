"""How soon PPO earns a checker's reward, beside TRL's PPO: seconds of training against what held-out prompts earn, and for how
many nats.

    python benchmarks/to_reward.py run       two hours, on a machine that does nothing beside
    python benchmarks/to_reward.py tables    write the table between its marks in docs/benchmarks.md

The check is that of an answer in few words that names what was asked about, which no model here gives to begin with and any
learns to. All sides start from the same model and learn from the same prompts and checks, each with settings of its own: whelp's
are the default recipe's, TRL's its own defaults and several learning rates without and with LoRA. They learn one after the
other, in turns of as many episodes, and behind each turn the policy is written down, which costs nobody time. One process then
samples each policy on held-out prompts: what the check says of its answers, and its KL to the model that all began with.
`benchmarks/results/speed/to-reward-<machine>-<number format>.json` grows with each side: stop and go on at will.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from environments import PPO
from races import DOCS, Side, Work, racers, record_of, start
from results import RECORDS, ROOT, commit, machine, table, write_between

from whelp.engines.base import SamplingParams
from whelp.maths.masked import masked_row_sums
from whelp.maths.stats import bootstrap
from whelp.progress import rate
from whelp.rewards.rules import CheckerReward
from whelp.runs.files import read_json, write_json_atomic
from whelp.stages.context import answers_in_order, spread
from whelp.text.chat import sampled
from whelp.types import Prompt
from whelp.workplace import Workplace

RESPONSE = 48
MAX_WORDS = 20
HELD_OUT = 192
TURNS, PEER_TURNS = 10, 2
"""As many as the default recipe has; and as many as a peer takes in twenty minutes."""
RATES = {False: (1e-5, 3e-5, 1e-4), True: (3e-4, 1e-3)}
"""TRL's learning rates, without and with LoRA: above its examples' default (3e-6), with which little happens in two turns."""


def trl(learning_rate: float, lora: bool) -> Side:
    name = "TRL 1.12, LoRA" if lora else "TRL 1.12"
    return Side(f"{name}, {learning_rate:g}", "peers.py", PPO, {"learning_rate": learning_rate, "lora": lora})


def work_of(place: Workplace, common: Work, turns: int) -> Work:
    """Prompts that both sides can read."""
    chat, ppo = place.chat(place.base), place.recipe.ppo
    prompts = checked(place.prompts.records)
    texts = [chat.prompt(prompt) for prompt in prompts]
    header = [*chat.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]]
    episodes = turns * ppo.batch_size
    return common | {
        "kind": "learn",
        "texts": [prompt.text for prompt in prompts],
        "prompts": texts,
        "checks": [prompt.check for prompt in prompts],
        "header": header,
        "source": str(ROOT / "src"),
        "temperature": ppo.temperature,
        "kl_coef": ppo.kl_coef,
        "response": RESPONSE,
        "episodes": episodes,
        "turn": ppo.batch_size,
        "batch": 32,
        "settings": {"ppo.response_length": RESPONSE, "ppo.total_episodes": episodes},
    }


def checked(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Single turns that name something, checked for an answer in few words that names it too."""
    found = []
    for prompt in prompts:
        stems = [word[:6] for word in re.findall(r"[a-z]{6,}", prompt.text.lower())]
        if len(prompt.messages) == 1 and stems:
            found.append(replace(prompt, check={"kind": "length", "any": stems, "max_words": MAX_WORDS}))
    return found


def learn(side: Side, work: Work, turns: int, folder: Path) -> tuple[list[float], dict[str, str]]:
    """Seconds of each turn, and the versions of what ran; the policies lie in `folder`/<turn>."""
    seconds = []
    with racers([side], work) as (racer,):
        for turn in range(1, turns + 1):
            seconds.append(racer.turn()["seconds"])
            racer.turn(f"save {folder / str(turn)}")
            print(f"{side.name}, turn {turn}: {seconds[-1]:.0f} s", flush=True)
        return seconds, racer.turn("end")["versions"]


def judged(place: Workplace, policy: Path) -> dict[str, dict[str, float]]:
    """What a policy earns on held-out prompts, and its KL to the model that it began as."""
    ppo = place.recipe.ppo
    engine = place.engine(place.base, temperature=ppo.temperature)
    engine.add("before", place.spec(place.base))
    engine.add("policy", place.spec(policy))
    prompts = spread(checked(place.evaluation.records), HELD_OUT, lambda prompt: prompt.category)
    completions = answers_in_order(engine, "policy", prompts, SamplingParams(1, ppo.temperature, RESPONSE, ("judged",)))
    with engine.hold(sampled(engine.chat, completions)) as held:
        rewards = CheckerReward(beside_twins=False)(completions, held)
        own, before = (engine.logprobs(name, held) for name in ("policy", "before"))
        kl = masked_row_sums(own.logprobs - before.logprobs, own.is_response)
    return {"reward": bootstrap(rewards).as_dict(), "kl": bootstrap(kl).as_dict()}


def run() -> None:
    """What the record of this machine lacks, in order; a record of something else begins anew."""
    place, common = start()
    file = record_of("to-reward", machine(), common["dtype"])
    same = {
        "machine": machine(),
        "dtype": common["dtype"],
        "threads": common["threads"],
        "response": RESPONSE,
        "max_words": MAX_WORDS,
        "turns": [TURNS, PEER_TURNS],
    }
    record = read_json(file)
    if any(record.get(key) != value for key, value in same.items()):
        record = {**same, "before": judged(place, place.base), "sides": {}}
    for side in (Side("whelp"), *(trl(lr, lora) for lora, rates in RATES.items() for lr in rates)):
        if side.name not in record["sides"]:
            record["sides"][side.name] = course(place, common, side, PEER_TURNS if side.environment else TURNS)
            write_json_atomic(file, record)


def course(place: Workplace, common: Work, side: Side, turns: int) -> dict[str, Any]:
    """Seconds of each turn, and what the policy behind it earns and costs."""
    with tempfile.TemporaryDirectory() as folder:
        seconds, versions = learn(side, work_of(place, common, turns), turns, Path(folder))
        curve = [judged(place, Path(folder) / str(turn)) for turn in range(1, turns + 1)]
    for turn, one in enumerate(curve, start=1):
        print(
            f"{side.name}, behind turn {turn}: {one['reward']['mean']:+.3f} for {one['kl']['mean']:.2f} nats",
            flush=True,
        )
    return {"settings": side.settings, "commit": commit(), "versions": versions, "seconds": seconds, "curve": curve}


# -- the table --------------------------------------------------------------------------------------------------------


def reaching(rewards: Sequence[float], wanted: float) -> float | None:
    """How many turns, and parts of one, until a curve of rewards, from before the first turn on, first reaches `wanted`, on
    straight lines between its points; None where it never does."""
    for turn, reward in enumerate(rewards):
        if reward >= wanted:
            before = rewards[max(0, turn - 1)]
            return turn - 1 + (wanted - before) / (reward - before) if turn else 0.0
    return None


def between(values: Sequence[float], turns: float) -> float:
    """A curve behind so many turns and parts of one."""
    return float(np.interp(turns, range(len(values)), values))


def _rewards(side: dict[str, Any]) -> list[float]:
    return [one["reward"]["mean"] for one in side["curve"]]


def rows(record: dict[str, Any]) -> list[list[str]]:
    """For each peer: what it earned at its best, and when and for how many nats whelp had earned as much."""
    ours, before = record["sides"]["whelp"], record["before"]["reward"]["mean"]
    earned = [before, *_rewards(ours)]
    result = []
    peers = {name: side for name, side in record["sides"].items() if name != "whelp"}
    for name, side in peers.items():
        top = max(range(len(side["curve"])), key=_rewards(side).__getitem__)
        wanted, kl = (side["curve"][top][key] for key in ("reward", "kl"))
        took, turns = sum(side["seconds"][: top + 1]), reaching(earned, wanted["mean"])
        mine, times = "never", ""
        if wanted["mean"] <= before:
            mine = "no more than before"
        elif turns is not None:
            seconds = between([0.0, *accumulate(ours["seconds"])], turns)
            nats = between([0.0, *(one["kl"]["mean"] for one in ours["curve"])], turns)
            mine, times = f"{nats:.1f} nats, {seconds:.0f} s", f"{took / seconds:.1f}"
        peer = f"{rate(wanted, '+.2f')}, {kl['mean']:.1f} nats, {took:.0f} s"
        result.append([name, f"{before:+.2f}", peer, mine, times])
    return result


def write_tables() -> None:
    heading = ["peer", "before", "the peer's best: reward, KL, time", "whelp at that reward", "times as fast"]
    parts = []
    for file in sorted((RECORDS / "speed").glob("to-reward-*.json")):
        record = read_json(file)
        if len(record.get("sides", {})) < 2:
            continue
        parts.append(f"{record['machine']}, {record['dtype']}:\n\n{table(heading, rows(record))}")
    write_between(DOCS, "to-reward", "\n\n".join(parts) or "Nothing is recorded.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    if parser.parse_args().command == "run":
        run()
    write_tables()


if __name__ == "__main__":
    main()
