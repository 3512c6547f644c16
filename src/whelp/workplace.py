"""What the stages of one command share: the recipe, the run's folder, and which models and data are meant."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from whelp.addresses import is_address
from whelp.config import Recipe
from whelp.engines.base import Engine, ModelSpec
from whelp.engines.devices import Compute, choose
from whelp.engines.launch import maker_of
from whelp.errors import DataError
from whelp.models.adapters import LoRA
from whelp.models.loading import context_of, load_tokenizer, refuse_other_vocabulary
from whelp.models.sources import resolve
from whelp.progress import Progress
from whelp.runs.files import read_json, sha256_model
from whelp.runs.manifest import DONE, Run, kind_of
from whelp.runs.tracking import Tracker
from whelp.splits import RankingSplit, split_demonstrations, split_rankings, user_turns
from whelp.stages.context import Stage
from whelp.text.chat import Chat
from whelp.text.formats import Loaded, read_demonstrations, read_principles, read_prompts
from whelp.types import Demonstration, Principle, Prompt

REVISED = "sft-revised"
"""The stage in which the base model learns from people's demonstrations and the helpful model's revisions."""


class Input(NamedTuple):
    path: str
    sha256: str
    """Of a file, of a model's weights, or the fingerprint of the stage of this run that made it."""


@dataclass
class Workplace:
    """Everything that the jobs of one command share."""

    recipe: Recipe
    run: Run
    progress: Progress
    models: Mapping[str, str] = field(default_factory=dict)
    """`whelp evaluate` only: the models to compare, by name."""
    allow_code: bool = False
    """Whether Python functions that the recipe names may be run."""
    tracker: Tracker | None = None
    """What hears each step's numbers, besides metrics.jsonl."""
    round: int = field(default=0, init=False)
    """The online round of what is made now; 0: the run's first reward model and PPO."""
    weight_ids: dict[Path, str] = field(default_factory=dict, init=False)
    stages: dict[str, Stage] = field(default_factory=dict, init=False)
    """Those that were begun by this command."""

    def at(self, round: int) -> Workplace:
        """The same place in another round."""
        other = copy.copy(self)
        other.round = round
        return other

    def named(self, stage: str) -> str:
        """A stage's name in this round."""
        return f"{stage}-{self.round}" if self.round else stage

    def folder(self, stage: str) -> Path:
        return self.run.stage_dir(self.named(stage))

    @cached_property
    def compute(self) -> Compute:
        return choose(self.recipe.device, self.recipe.dtype)

    @cached_property
    def base(self) -> Path:
        return resolve(self.recipe.model, self.progress.say)

    @property
    def policy(self) -> Path:
        """What the reward model, PPO and DPO start from: the model that learned from revisions, or else the helpful one."""
        folder = self.run.stage_dir(REVISED)
        return folder if "revise" in self.recipe.stages or self._is_from_base(folder) else self.helpful

    @property
    def helpful(self) -> Path:
        """The run's SFT model, also that of an earlier `whelp sft` from the same base model, or else the base model itself."""
        folder = self.run.stage_dir("sft")
        return folder if "sft" in self.recipe.stages or self._is_from_base(folder) else self.base

    def _is_from_base(self, folder: Path) -> bool:
        made_from = read_json(folder / DONE).get("parts", {}).get("inputs", {}).get("model")
        return made_from is not None and made_from == self.model_id(self.base)

    @property
    def has_feedback(self) -> bool:
        """Whether the reward model learns from a judge's labels too: of this command, or of an earlier one."""
        return "feedback" in self.recipe.stages or (self.run.stage_dir("feedback") / DONE).exists()

    @cached_property
    def compared(self) -> dict[str, Path]:
        """The models to compare that are here, in the order of the pipeline."""
        if self.models:
            here = {name: source for name, source in self.models.items() if not is_address(source)}
            return {name: resolve(source, self.progress.say) for name, source in here.items()}
        found = {"base": self.base}
        if self.helpful not in (self.base, self.policy):
            found["helpful"] = self.helpful
        if self.policy != self.base:
            found["sft"] = self.policy
        last = self.at(self.recipe.rounds.n)
        if last.is_here("ppo"):
            found["rlhf"] = last.folder("ppo")
        if self.is_here("dpo"):
            found["dpo"] = self.folder("dpo")
        return found

    def is_here(self, stage: str) -> bool:
        """Whether the run makes a policy by this stage, or made one earlier from the same model."""
        made_from = read_json(self.folder(stage) / DONE).get("parts", {}).get("inputs", {}).get("model")
        return stage in self.recipe.stages or (made_from is not None and made_from == self.model_id(self.policy))

    @property
    def reward_model(self) -> Path:
        named = self.recipe.ppo.reward_model
        return resolve(named, self.progress.say) if named else self.folder("reward")

    def engine(self, model: Path, max_length: int | None = None, temperature: float = 1.0) -> Engine:
        """For `model` and others of its vocabulary."""
        return maker_of(self.recipe)(self.chat(model, max_length), self.compute, temperature)

    def chat(self, model: Path, max_length: int | None = None) -> Chat:
        """`max_length` is bounded by the model's context."""
        if max_length is not None:
            max_length = min(max_length, context_of(model) or max_length)
        return Chat(load_tokenizer(model), self.recipe.system_prompt, max_length)

    def add(self, engine: Engine, name: str, folder: Path, **changes: Any) -> None:
        """The model of a folder, beside those of the engine. Raises `ModelError` where it has another vocabulary."""
        refuse_other_vocabulary(engine.chat.tokenizer, folder)
        engine.add(name, self.spec(folder, **changes))

    def spec(self, source: Path | None, **changes: Any) -> ModelSpec:
        recipe = self.recipe
        lora = LoRA(recipe.lora_rank, recipe.lora_alpha) if recipe.lora_rank else None
        usual = {"trainable_layers": recipe.trainable_layers, "lora": lora, "seed": recipe.seed}
        return ModelSpec(source=source, **(usual | changes))

    def stage(self, name: str, seed_offset: int = 0) -> Stage:
        ppo = self.recipe.ppo
        limits = {"ppo": (ppo.save_steps, ppo.save_total_limit), "evaluate": (1, 1)}
        save_steps, limit = limits.get(kind_of(name), (50, 1))
        seed = self.recipe.seed + seed_offset
        stage = Stage(self.run.stage_dir(name), self.progress, seed, save_steps, limit, self.tracker)
        self.stages[name] = stage
        return stage

    def tell(self, loaded: Loaded[Any]) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in loaded.counts.items())
        self.progress.say(f"{loaded.path}: {counts} ({loaded.format})")

    @cached_property
    def demonstrations(self) -> Loaded[Demonstration]:
        return read_demonstrations(self.recipe.sft.train_file)

    @cached_property
    def rankings(self) -> RankingSplit:
        return split_rankings(self.recipe)

    @cached_property
    def principles(self) -> tuple[Principle, ...]:
        """Those of the constitution that are drawn. Raises `DataError` where there is none."""
        config = self.recipe.constitution
        found = tuple(p for p in read_principles(config.principles) if p.value in config.values)
        if not found:
            raise DataError(
                f"{config.principles} has no principle of the value {' or '.join(config.values)}: give other constitution.values."
            )
        return found

    @cached_property
    def red_team(self) -> Loaded[Prompt]:
        """What the constitution's stages answer."""
        return read_prompts(self.recipe.constitution.train_file)

    @cached_property
    def prompts(self) -> Loaded[Prompt]:
        return read_prompts(self.recipe.ppo.train_file)

    @cached_property
    def evaluation(self) -> Loaded[Prompt]:
        return read_prompts(self.recipe.evaluate.prompts)

    def training_prompts(self, stage: str) -> list[str]:
        """Hashes of every user turn that a stage trains on: none where it does not train."""
        match kind_of(stage):
            case "revise" | "feedback":
                return user_turns(p.messages for p in self.red_team.records)
            case "sft":
                train, _ = split_demonstrations(self.demonstrations, self.recipe.sft.test_fraction)
                return user_turns(d.messages for d in train)
            case "reward" | "dpo" | "labeller":
                return user_turns(r.prompt.messages for r in self.rankings.train)
            case "judge":
                return user_turns(r.prompt.messages for r in self.rankings.held_out)
            case "ppo":
                return user_turns(p.messages for p in self.prompts.records)
        return []

    def model_id(self, folder: Path) -> str:
        """A stage of this run by what it was made from, any other model by its weights."""
        if folder.parent == self.run.path:
            return str(read_json(folder / DONE).get("fingerprint", "not made yet"))
        if folder not in self.weight_ids:  # several stages ask, and large weights take a while to hash
            self.weight_ids[folder] = sha256_model(folder)
        return self.weight_ids[folder]

    def model_input(self, folder: Path) -> Input:
        return Input(str(folder), self.model_id(folder))

    def record_prompts(self, stage: str, *sources: Path) -> None:
        """Note every prompt that had a part in what the stage makes: its own, and those of other runs that it builds on."""
        others = {source.resolve().parent for source in sources} - {self.run.path.resolve()}
        earlier = (Run(path).training_prompts() for path in others)
        self.run.record_training_prompts(stage, set(self.training_prompts(stage)).union(*earlier))
