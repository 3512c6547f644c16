"""A stage of a run as a job: what its result depends on, and what does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whelp.rewards.formula import functions
from whelp.runs.files import sha256_file
from whelp.splits import held_out_fraction
from whelp.text.formats import Loaded
from whelp.workplace import Input, Workplace


@dataclass(frozen=True)
class Job:
    """One stage: what it depends on, and what it does in the workplace of its round."""

    name: str
    settings: Callable[[Workplace], dict[str, Any]]
    inputs: Callable[[Workplace], dict[str, Input]]
    """What is read, by name."""
    work: Callable[[Workplace], dict[str, Any]]
    what: str
    round: int = 0


def settings(*sections: str) -> Callable[[Workplace], dict[str, Any]]:
    """Those sections of the recipe, and what every model depends on."""
    common = ("seed", "dtype", "trainable_layers", "system_prompt")

    def read(place: Workplace) -> dict[str, Any]:
        whole = place.recipe.model_dump(mode="json")
        lora = ("lora_rank", "lora_alpha") if place.recipe.lora_rank else ()
        chosen = {name: whole[name] for name in (*common, *lora, *sections)}
        chosen.get("ppo", {}).pop("save_steps", None)
        chosen.get("ppo", {}).pop("save_total_limit", None)
        return chosen

    return read


def data_input(loaded: Loaded[Any]) -> Input:
    return Input(loaded.path, loaded.sha256)


def file_input(file: Path) -> Input:
    """One that an earlier stage or people write."""
    return Input(str(file), sha256_file(file) if file.exists() else "not made yet")


def rankings_inputs(place: Workplace) -> dict[str, Input]:
    split = place.rankings
    inputs = {"rankings": data_input(split.loaded)}
    if split.test is not None:
        inputs["test_rankings"] = data_input(split.test)
    else:
        inputs["split"] = Input(
            split.loaded.path, f"{held_out_fraction(place.recipe):g} of the prompts held out, by what is said first"
        )
    if place.recipe.reward.contradictions == "drop":
        inputs["contradictions"] = Input(split.loaded.path, "dropped")
    return inputs


def sft_inputs(place: Workplace) -> dict[str, Input]:
    return {
        "model": place.model_input(place.base),
        "demonstrations": data_input(place.demonstrations),
    }


def code_inputs(rewards: Mapping[str, float]) -> dict[str, Input]:
    """The files of the Python functions among the rewards."""
    files = sorted({name.rpartition(":")[0] for name in functions(rewards)})
    return {f"code of {file}": file_input(Path(file)) for file in files}
