"""A recipe on a tiny random model and a few words of data, and ways to run it."""

from __future__ import annotations

import json
from pathlib import Path

from whelp import pipeline
from whelp.config import Recipe
from whelp.progress import SilentProgress

WORDS = ["hello there", "how are you", "the end", "two and two", "i am fine", "today", "four", "an end", "you are"]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(model: Path, data: Path, output_dir: Path, **ppo: object) -> Recipe:
    settings = {
        "total_episodes": 48, "batch_size": 8, "num_mini_batches": 2, "num_ppo_epochs": 2, "response_length": 6,
        "save_steps": 2, "train_file": str(data / "prompts.jsonl"),
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "model": str(model),
            "output_dir": str(output_dir),
            "trainable_layers": 2,
            "stages": ["sft", "reward", "ppo", "evaluate", "report"],
            "dtype": "float32",
            "sft": {"train_file": str(data / "demos.jsonl"), "num_train_epochs": 1, "per_step_batch_size": 4},
            "reward": {"train_file": str(data / "rankings.jsonl"), "num_train_epochs": 3, "learning_rate": 3e-3},
            "ppo": settings | ppo,
            "evaluate": {"prompts": str(data / "evaluation.jsonl"), "max_new_tokens": 6},
        }
    )


def run(recipe: Recipe, resume: bool = False) -> pipeline.RunSummary:
    return pipeline.run(recipe, ["whelp", "run"], resume, SilentProgress())


def changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    part = getattr(recipe, section)
    return recipe.model_copy(update={section: part.model_copy(update=values)})


def states(summary: pipeline.RunSummary) -> dict[str, str]:
    return {cost.stage: cost.state for cost in summary.costs}
