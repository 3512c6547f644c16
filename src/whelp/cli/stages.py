"""`whelp sft`, `whelp reward`, `whelp ppo` and `whelp dpo`: one stage alone, on one's own files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from whelp.cli import show
from whelp.cli.base import (
    TRAIN_PANEL,
    AllowCode,
    ModelSource,
    OutputDir,
    Overrides,
    RecipeName,
    ReportTo,
    Resume,
    StageCommand,
    recipe_of,
)

if TYPE_CHECKING:
    from whelp.config import Recipe

TrainFile = Annotated[
    str | None,
    typer.Option(
        "--train_file",
        metavar="FILE",
        help="jsonl, json, yaml, csv or parquet; a hub id; builtin:<name>.",
        show_default=False,
    ),
]
HeldOutFile = Annotated[
    str | None,
    typer.Option(
        "--test_file", metavar="FILE", help="Held-out pairs; else a share of the prompts.", show_default=False
    ),
]
RewardKind = Annotated[
    str | None,
    typer.Option("--reward", metavar="REWARD", help="model, checker, FILE.py:FUNCTION or a sum.", show_default=False),
]
RewardModel = Annotated[
    str | None,
    typer.Option("--reward_model", metavar="MODEL", help="Another reward model than FOLDER's.", show_default=False),
]
Episodes = Annotated[
    int | None, typer.Option("--total_episodes", min=1, help="Completions sampled in all.", show_default=False)
]
KLCoef = Annotated[
    float | None, typer.Option("--kl_coef", min=0.0, help="Strength of the leash to the SFT model.", show_default=False)
]


def register(app: typer.Typer) -> None:
    for command in (sft, reward, ppo, dpo):
        app.command(cls=StageCommand, rich_help_panel=TRAIN_PANEL)(command)


def sft(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    output_dir: OutputDir = None,
    report_to: ReportTo = None,
    resume: Resume = False,
) -> None:
    """Supervised fine-tuning on ideal answers. Writes FOLDER/sft (FOLDER is out unless given).

    Data: messages; prompt and completion; ShareGPT's conversations; Alpaca's instruction, input and output; or text
    with Human: and Assistant: turns.

    \b
    whelp sft --train_file demonstrations.jsonl
    whelp sft --model Qwen/Qwen3-0.6B --train_file d.jsonl sft.learning_rate=1e-4
    """
    options = {"model": model, "sft.train_file": train_file, "output_dir": output_dir, "report_to": report_to}
    run_stage(ctx, "sft", recipe_of(recipe, overrides, options, ("sft",)), resume)


def reward(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    test_file: HeldOutFile = None,
    output_dir: OutputDir = None,
    report_to: ReportTo = None,
    resume: Resume = False,
) -> None:
    """Train a reward model on preferences. Writes FOLDER/reward, with accuracy, margin, loss and n in metrics.json.

    Data: prompt, chosen, rejected; or prompt, completions, ranks; or prompt, completion, label; or HH transcripts.
    A record may also have a probability, a margin (or a strength: slightly better) and a weight.

    \b
    whelp reward --train_file pairs.jsonl
    whelp reward --train_file pairs.jsonl --test_file held_out.jsonl
    whelp reward --model out/sft --train_file pairs.jsonl reward.learning_rate=5e-5
    """
    options = {
        "model": model,
        "reward.model": model,
        "reward.train_file": train_file,
        "reward.test_file": test_file,
        "output_dir": output_dir,
        "report_to": report_to,
    }
    run_stage(ctx, "reward", recipe_of(recipe, overrides, options, ("reward",)), resume)


def ppo(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    reward: RewardKind = None,
    reward_model: RewardModel = None,
    total_episodes: Episodes = None,
    kl_coef: KLCoef = None,
    output_dir: OutputDir = None,
    report_to: ReportTo = None,
    resume: Resume = False,
    allow_code: AllowCode = False,
) -> None:
    """PPO against the reward model of the same FOLDER, on a leash to its SFT model. Writes FOLDER/ppo.

    Data: prompts; with --reward checker each needs a check.

    \b
    whelp ppo --train_file prompts.jsonl       after whelp sft and whelp reward
    whelp ppo --reward checker --train_file sums.jsonl --kl_coef 0.02
    whelp ppo --reward "model - 0.1 * mine.py:shouting" --allow_code
    """
    options = {
        "model": model,
        "ppo.train_file": train_file,
        "ppo.reward": reward,
        "ppo.reward_model": reward_model,
        "ppo.total_episodes": total_episodes,
        "ppo.kl_coef": kl_coef,
        "output_dir": output_dir,
        "report_to": report_to,
    }
    run_stage(ctx, "ppo", recipe_of(recipe, overrides, options, ("ppo",)), resume, allow_code)


def dpo(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    test_file: HeldOutFile = None,
    output_dir: OutputDir = None,
    report_to: ReportTo = None,
    resume: Resume = False,
) -> None:
    """Direct preference optimisation: no reward model, no sampling. Writes FOLDER/dpo, from FOLDER's SFT model.

    Data: as for whelp reward.

    \b
    whelp dpo --train_file pairs.jsonl         after whelp sft
    whelp dpo --model out/sft --train_file pairs.jsonl dpo.beta=0.05
    """
    options = {
        "model": model,
        "reward.train_file": train_file,
        "reward.test_file": test_file,
        "output_dir": output_dir,
        "report_to": report_to,
    }
    run_stage(ctx, "dpo", recipe_of(recipe, overrides, options, ("dpo",)), resume)


def run_stage(ctx: typer.Context, stage: str, recipe: Recipe, resume: bool, allow_code: bool = False) -> None:
    """The stages of a recipe of one, and what came of them."""
    from whelp import pipeline
    from whelp.progress import make_progress

    progress = make_progress()
    show.summary(pipeline.run(recipe, argv=ctx.obj, resume=resume, progress=progress, allow_code=allow_code), stage)
