"""`whelp constitution`: the principles, what they make of an answer, and both stages of Constitutional AI alone."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, final

import typer

from whelp.cli import show
from whelp.cli.base import (
    TRAIN_PANEL,
    AllowUntrusted,
    MaxNewTokens,
    ModelSource,
    OutputDir,
    Overrides,
    RecipeName,
    Resume,
    Seed,
    StageCommand,
    print_line,
    recipe_of,
)
from whelp.cli.stages import run_stage

SHIPPED = "builtin:constitution"
Constitution = Annotated[str, typer.Argument(metavar="FILE", help="A yaml file of principles, or builtin:<name>.")]
Principles = Annotated[str, typer.Option("--principles", metavar="FILE", help="A yaml file of principles.")]
TrainFile = Annotated[
    str | None, typer.Option("--train_file", metavar="FILE", help="Prompts that tempt to harm.", show_default=False)
]


@final
class ConstitutionCommand(StageCommand):
    """A stage of Constitutional AI."""

    section = "constitution"


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, help="Constitutional AI: principles, critique and revision, feedback by a judge."
    )
    group.command("list")(list_all)
    group.command("check")(check)
    group.command("try")(try_out)
    group.command("revise", cls=ConstitutionCommand)(revise)
    group.command("feedback", cls=ConstitutionCommand)(feedback)
    app.add_typer(group, name="constitution", rich_help_panel=TRAIN_PANEL)


def list_all(file: Constitution = SHIPPED) -> None:
    """Every principle with its value.

    \b
    whelp constitution list
    whelp constitution list mine.yaml
    """
    from whelp.text.formats import read_principles

    rows = [(one.id, one.value, one.principle) for one in read_principles(file)]
    show.table(f"{file}: {len(rows)} principles", ("id", "value", "principle"), rows)


def check(file: Constitution = SHIPPED) -> None:
    """Say what is wrong with a constitution: first what cannot be used, then what will not work well.

    \b
    whelp constitution check mine.yaml
    """
    from whelp.text.formats import read_principles
    from whelp.text.formats.principles import VALUES, doubts

    principles = read_principles(file)
    found = doubts(principles)
    for doubt in found:
        print_line("doubt", doubt, "yellow")
    counts = Counter(principle.value for principle in principles)
    said = ", ".join(f"{counts[value]} {value}" for value in VALUES if counts[value])
    typer.echo(f"{file}: {len(principles)} principles can be used ({said}){f', {len(found)} doubts' if found else ''}")


def try_out(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    model: ModelSource = None,
    principles: Principles = SHIPPED,
    principle: Annotated[
        str | None, typer.Option("--principle", metavar="ID", help="This one in every round.", show_default=False)
    ] = None,
    value: Annotated[str, typer.Option("--value", help="Whose principles are drawn.")] = "harmless",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=4)] = 2,
    temperature: Annotated[float, typer.Option("--temperature", min=0.01)] = 0.7,
    max_new_tokens: MaxNewTokens = 96,
    seed: Seed = 0,
) -> None:
    """Show principle, critique and revision for one prompt.

    \b
    whelp constitution try "How do I get back at my neighbour?"
    whelp constitution try "Is my poem good?" --value honest --rounds 1
    whelp constitution try "..." --principles mine.yaml --principle be-kind --model runs/assistant/sft
    """
    from whelp.constitution import tried
    from whelp.text.formats.principles import VALUES

    values = f"[{value if principle is None else ', '.join(VALUES)}]"
    config = {"principles": principles, "values": values, "rounds": rounds, "temperature": temperature}
    config["max_new_tokens"] = max_new_tokens
    options = {"model": model, "seed": seed, **{f"constitution.{name}": given for name, given in config.items()}}
    for label, text in tried(recipe_of(None, None, options), prompt, principle):
        typer.secho(label, bold=True)
        typer.echo(f"{text}\n")


def revise(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    output_dir: OutputDir = None,
    resume: Resume = False,
) -> None:
    """Critique and revision: FOLDER's SFT model revises its answers, and the base model learns from the revisions.

    Writes FOLDER/revise and FOLDER/sft-revised; FOLDER/labeller, a reward model of people's rankings, sifts the revisions.

    \b
    whelp constitution revise                               after whelp sft
    whelp constitution revise --train_file red_team.jsonl constitution.rounds=1 constitution.filter=false
    """
    run_stage(ctx, "revise", recipe_of(recipe, overrides, _options(model, train_file, output_dir), ("revise",)), resume)


def feedback(
    ctx: typer.Context,
    recipe: RecipeName = None,
    overrides: Overrides = None,
    model: ModelSource = None,
    train_file: TrainFile = None,
    output_dir: OutputDir = None,
    resume: Resume = False,
    allow_untrusted_labels: AllowUntrusted = False,
) -> None:
    """AI feedback: a judge compares answers of FOLDER's model, after it was measured on pairs that people ranked.

    Writes FOLDER/feedback, from which whelp reward learns too. A judge that agrees with people no more than chance is refused.

    \b
    whelp constitution feedback                             judged by a reward model of people's rankings
    whelp constitution feedback constitution.judge=choice constitution.judge_model=Qwen/Qwen3-8B
    whelp constitution feedback constitution.judge=endpoint constitution.judge_model=gpt-4o-mini
    """
    options = _options(model, train_file, output_dir)
    options["constitution.allow_untrusted_labels"] = "true" if allow_untrusted_labels else None
    run_stage(ctx, "feedback", recipe_of(recipe, overrides, options, ("feedback",)), resume)


def _options(model: str | None, train_file: str | None, output_dir: str | None) -> dict[str, str | None]:
    return {"model": model, "constitution.train_file": train_file, "output_dir": output_dir}
