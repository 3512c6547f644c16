"""What PPO bought on the prompts that it draws from, and for how many nats: fresh samples of its policy against the SFT model's.

    python benchmarks/drift.py runs/assistant [another/run ...]

One answer of either model to every prompt that PPO may meet, drawn with the same random numbers at PPO's temperature: what the
run's reward model says, the share that passes the prompts' own checks, and the KL of whole answers to the SFT model. PPO's
settings are chosen by this and not by the evaluation. Each run keeps it as `drift.json`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from results import percent, points, table

from whelp.checkers import passes
from whelp.config import Recipe
from whelp.engines.base import SamplingParams
from whelp.maths.masked import masked_row_sums
from whelp.maths.stats import bootstrap
from whelp.progress import PlainProgress
from whelp.runs.files import write_json_atomic
from whelp.runs.manifest import Run
from whelp.scorers import scorer, where_trusted
from whelp.stages.context import answers_in_order
from whelp.text.chat import sampled
from whelp.types import Completion, Estimate
from whelp.workplace import Workplace


def drift(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    recipe = Recipe.model_validate(run.manifest()["recipe"])
    recipe = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"shaping": "none"})})  # one unit for all
    place = Workplace(recipe, run, PlainProgress())
    engine = place.engine(place.policy, temperature=recipe.ppo.temperature)
    engine.add("sft", place.spec(place.policy))
    engine.add("ppo", place.spec(run.stage_dir("ppo")))
    reward = scorer(place, engine)
    prompts = where_trusted(place, place.prompts.records)
    params = SamplingParams(1, recipe.ppo.temperature, recipe.ppo.response_length, ("drift", recipe.seed))
    found = {}
    for model in ("sft", "ppo"):
        completions = answers_in_order(engine, model, prompts, params)
        with engine.hold(sampled(engine.chat, completions)) as held:
            own = engine.logprobs(model, held)
            sft = own if model == "sft" else engine.logprobs("sft", held)
            found[model] = {
                "score": reward(completions, held),
                "passes": torch.tensor([passes_its_check(completion) for completion in completions]),
                "kl": masked_row_sums(own.logprobs - sft.logprobs, own.is_response),
                "length": own.is_response.sum(1).float(),
            }
    categories = sorted({prompt.category for prompt in prompts})
    gained = found["ppo"]["passes"] - found["sft"]["passes"]
    return {
        "settings": recipe.ppo.model_dump(mode="json"),
        "seed": recipe.seed,
        "sft": {name: asdict(bootstrap(values)) for name, values in found["sft"].items()},
        "gained": {name: asdict(bootstrap(values - found["sft"][name])) for name, values in found["ppo"].items()},
        "by_category": {
            category: float(gained[[i for i, p in enumerate(prompts) if p.category == category]].mean())
            for category in categories
        },
    }


def passes_its_check(completion: Completion) -> float:
    check = completion.prompt.check
    return float(check is not None and passes(check, completion.text, completion.is_finished))


def row(folder: Path, found: dict[str, Any]) -> list[str]:
    gained = {name: Estimate(**value) for name, value in found["gained"].items()}
    score, kl = gained["score"], gained["kl"]
    return [
        str(folder),
        percent(Estimate(**found["sft"]["passes"])),
        points(gained["passes"]),
        f"{score.mean:+.2f} ({score.low:+.2f} to {score.high:+.2f})",
        f"{kl.mean:.2f}",
        f"{gained['length'].mean:+.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="runs with a finished PPO")
    rows = []
    for folder in parser.parse_args().runs:
        found = drift(folder)
        write_json_atomic(folder / "drift.json", found)
        rows.append(row(folder, found))
    print(table(["run", "SFT passes", "PPO - SFT", "score gained", "KL, nats", "tokens"], rows))


if __name__ == "__main__":
    main()
