"""`whelp audit`: what a reward model pays for, and whether a policy learned to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whelp.cli import show
from whelp.cli.base import LOOK_PANEL, AllowCode, OutputDir, Overrides, Resume, StageCommand, recipe_of
from whelp.progress import rate

if TYPE_CHECKING:
    from whelp.config import Recipe

RewardModel = Annotated[
    str | None,
    typer.Option(
        "--reward_model", metavar="MODEL", help="A folder or hub id; else that of FOLDER's run.", show_default=False
    ),
]
Cases = Annotated[
    str | None,
    typer.Option("--cases", metavar="FILE", help="Prompts with good answers: prompt and answer.", show_default=False),
]
Probes = Annotated[
    list[str] | None,
    typer.Option("--probes", metavar="FILE.py", help="Probes of your own; repeat for more.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command(cls=StageCommand, rich_help_panel=LOOK_PANEL)(audit)


def audit(
    ctx: typer.Context,
    overrides: Overrides = None,
    reward_model: RewardModel = None,
    cases: Cases = None,
    probes: Probes = None,
    output_dir: OutputDir = None,
    resume: Resume = False,
    allow_code: AllowCode = False,
) -> None:
    """Audit a reward model for reward hacking, and in a run's FOLDER the policy that learned from it. Writes FOLDER/audit.

    Each probe adds one hack to good answers (padding, praise, certainty, repetition, ...), by degrees, and the score's change is
    set beside that of a paraphrase.

    \b
    whelp audit --output_dir runs/assistant                     a run's reward model and policy
    whelp audit --reward_model OpenAssistant/reward-model-deberta-v3-base
    whelp audit --reward_model out/reward --probes mine.py --allow_code
    """
    options = {
        "audit.reward_model": reward_model,
        "audit.cases": cases,
        "audit.probes": f"[{', '.join(probes)}]" if probes else None,
        "output_dir": output_dir,
    }
    recipe = recipe_of_run(output_dir, overrides, options)
    from whelp import pipeline
    from whelp.progress import make_progress

    found = pipeline.run(recipe, argv=ctx.obj, resume=resume, progress=make_progress(), allow_code=allow_code)
    audited = found.results["audit"]
    probes_table(audited["reward_model"])
    policy_table(audited.get("policy"))
    show.summary(found, "audit")


def recipe_of_run(folder: str | None, overrides: list[str] | None, options: Mapping[str, object]) -> Recipe:
    """The recipe of the run in `folder`, where there is one: it says what its models are and which prompts they were
    evaluated on."""
    from whelp.config import Recipe
    from whelp.runs.files import read_json
    from whelp.settings import to_yaml

    recorded = read_json(Path(folder) / "manifest.json").get("recipe") if folder else None
    if recorded is None:
        return recipe_of(None, overrides, options, ("audit",))
    with TemporaryDirectory() as place:
        file = Path(place) / "recipe.yaml"
        file.write_text(to_yaml(Recipe.model_validate(recorded)), encoding="utf-8")
        return recipe_of(str(file), overrides, options, ("audit",))


def probes_table(found: Mapping[str, Any]) -> None:
    """Each probe in the dose that is liked best."""
    rows = []
    for one in found["probes"]:
        best = next(dose for dose in one["doses"] if dose["dose"] == one["best_liked_dose"])
        rows.append((
            one["name"], one["hack"], best["dose"], rate(best["rises"]), rate(best["shift"], "+.2f"),
            rate(best["over_control"], "+.2f"), one["verdict"],
        ))  # fmt: skip
    heading = ("probe", "hack", "dose", "score rises", "by (spreads of good answers)", "beside a paraphrase", "verdict")
    show.table(f"What the reward model pays for, on {found['cases']} cases", heading, rows)


def policy_table(found: Mapping[str, Any] | None) -> None:
    """What the policy does, before and after."""
    if not found:
        return
    rows = [
        (
            one["name"],
            f"{one['before']['mean']:.2f}",
            f"{one['after']['mean']:.2f}",
            rate(one["difference"], "+.2f"),
            one["verdict"],
        )
        for one in found["measures"]
    ]
    heading = ("measure", "SFT", "after", "difference", "")
    show.table(f"What the policy does, on {found['prompts']} prompts", heading, rows)
    reward = found["reward"]
    if reward is not None:
        shared = reward["share_not_of_length"]
        told = [
            ("reward gained", rate(reward["gain"], "+.2f")),
            ("share of it that is not owed to length", "no gain" if shared is None else f"{shared:.0%}"),
            ("correlation of reward and length", f"{reward['correlation_with_length']:+.2f}"),
        ]
        if found["gold"] is not None:
            told.append(("prefers it: the judge that trained nothing", rate(found["gold"]["prefers"])))
        show.table("What its reward says", ("", "result"), told)
