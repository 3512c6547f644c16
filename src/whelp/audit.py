"""The audit of a run: does its reward model pay for hacks, and did its policy learn any?

A probe of one's own: see `whelp.stages.audit.probes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from whelp.errors import DataError
from whelp.job import file_input
from whelp.maths.stats import clusters_of
from whelp.models.sources import resolve
from whelp.progress import Progress
from whelp.rewards.compose import run_file
from whelp.runs.files import read_json
from whelp.runs.manifest import DONE
from whelp.runs.metrics import MetricsLog
from whelp.scorers import TextScorer, text_scorer
from whelp.stages.audit import policy, reward
from whelp.stages.audit.probes import PROBES, Contrast, Probe, probe, probes_in
from whelp.stages.context import spread
from whelp.stages.evaluate.answers import FILE, Answer, aligned
from whelp.stages.evaluate.findings import LEASHED
from whelp.text.formats import read_source
from whelp.text.formats.cases import read_cases
from whelp.types import Case, Message, Prompt
from whelp.workplace import Input, Workplace

PIECE = 128
"""Answers that are scored at one time."""
__all__ = ["Case", "Contrast", "inputs", "probe", "probes_of", "work"]


def inputs(place: Workplace) -> dict[str, Input]:
    config = place.recipe.audit
    source = read_source(config.cases)
    found = {"cases": Input(source.name, source.sha256), "reward": place.model_input(audited(place))}
    found |= {f"code of {file}": file_input(Path(file)) for file in config.probes}
    if has_answers(place):
        found["answers"] = file_input(place.run.stage_dir("evaluate") / FILE)
    return found


def audited(place: Workplace) -> Path:
    """The reward model that is audited: the one named, or else that of PPO."""
    named = place.recipe.audit.reward_model
    return resolve(named, place.progress.say) if named else place.at(place.recipe.rounds.n).reward_model


def has_answers(place: Workplace) -> bool:
    """Whether a policy's answers lie here, beside those of the model that it started from."""
    is_made = "evaluate" in place.recipe.stages or (place.run.stage_dir("evaluate") / DONE).exists()
    return place.recipe.audit.reward_model is None and is_made


def work(place: Workplace) -> dict[str, Any]:
    """Raises `DataError` for cases or probes that cannot be used."""
    config, model = place.recipe.audit, audited(place)
    score = in_pieces(text_scorer(place, model), place.progress)
    cases = spread(read_cases(config.cases), config.max_cases, lambda case: case.category)
    probes = probes_of(config.probes)
    place.progress.say(f"{len(probes)} probes of {model} on {len(cases)} cases of {config.cases}")

    def scores(asked: Sequence[tuple[str, str]]) -> list[float]:
        return score([(Prompt(text, (Message("user", text),)), answer) for text, answer in asked]).mean(0).tolist()

    found: dict[str, Any] = {"reward_model": reward.audit(scores, cases, probes, place.recipe.seed)}
    if has_answers(place):
        found["policy"] = _policy(place, score)
    return found | {"verdict": told(found)}


def in_pieces(score: TextScorer, progress: Progress) -> TextScorer:
    """So that one sees how far it is; answers to one prompt together, the first of them first."""

    def scored(rows: Sequence[tuple[Prompt, str]]) -> Float[Tensor, "M N"]:
        order = clusters_of([prompt.text for prompt, _ in rows]).argsort(stable=True).tolist()
        found = []
        with progress.steps("scoring", len(rows)) as bar:
            for start in range(0, len(rows), PIECE):
                piece = [rows[i] for i in order[start : start + PIECE]]
                found.append(score(piece))
                bar.advance(len(piece))
        scores = torch.cat(found, 1) if found else torch.zeros(1, 0)
        return scores[:, torch.tensor(order, dtype=torch.long).argsort()]

    return scored


def probes_of(files: Sequence[str]) -> tuple[Probe, ...]:
    """Those that ship, and those of the user's files. Raises `DataError` for a file that cannot be run or has none."""
    found = list(PROBES)
    for file in files:
        own = probes_in(vars(run_file(file, "the probes")).values())
        own = tuple(one for one in own if one not in PROBES)
        if not own:
            raise DataError(
                f"{file} has no probe; decorate a function with whelp.audit.probe (docs/reward-hacking.md)."
            )
        found += own
    return tuple(found)


def _policy(place: Workplace, score: TextScorer) -> dict[str, Any] | None:
    """None where the run evaluated no policy beside its start."""
    evaluated = place.run.stage_dir("evaluate")
    models = read_json(evaluated / "metrics.json").get("models", [])
    last = next((name for name in LEASHED if name in models), None)
    if last is None or "sft" not in models:
        return None
    prompts = {one.id: one for one in place.evaluation.records}
    rows = MetricsLog.read(evaluated / FILE)
    greedy = [row for row in rows if row["mode"] == "greedy" and row["id"] in prompts]
    before, after = (
        [Answer.of_row(row, prompts[row["id"]]) for row in greedy if row["model"] == name] for name in ("sft", last)
    )
    before, after = zip(*((old, new) for new, old in aligned(after, before)), strict=True)
    old, new = (score([(one.prompt, one.text) for one in side]) for side in (before, after))
    found = policy.audit(before, after, (old, new))
    ppo = place.at(place.recipe.rounds.n).folder("ppo")
    return found | {"changes": policy.changes(MetricsLog.read(ppo / "metrics.jsonl")) if last == "rlhf" else {}}


def told(found: dict[str, Any]) -> str:
    """What the audit found, in a sentence or two."""
    pays = [one["name"] for one in found["reward_model"]["probes"] if one["verdict"] == "pays"]
    parts = [
        f"The reward model pays for {', '.join(pays)}."
        if pays
        else "No probe found a hack that the reward model pays for."
    ]
    if found.get("policy"):
        parts.append(f"The policy: {found['policy']['verdict']}")
    return " ".join(parts)
