"""What the commands share: how errors end, how a recipe is put together, and the options that several have."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer
from typer.core import TyperCommand, TyperGroup

from whelp.errors import ConfigError, Interrupted, WhelpError

if TYPE_CHECKING:
    from rich.table import Table

    from whelp.config import Recipe

TRAIN_PANEL = "Train"
LOOK_PANEL = "Look at a model"
PREPARE_PANEL = "Prepare"
DEFAULT_RUN = "runs/assistant"
STAGE_OUTPUT = "out"

RecipeName = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or one that ships: assistant, assistant-full, smoke, constitutional, checker, from_base.",
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings by dotted name, such as ppo.kl_coef=0.1.")
]
ModelSource = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A local folder, a hub id or an alias.", show_default=False),
]
OutputDir = Annotated[
    str | None, typer.Option("--output_dir", metavar="FOLDER", help="The run directory.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run directory.")]
ReportTo = Annotated[
    str | None,
    typer.Option(
        "--report_to", metavar="TRACKER", help="tensorboard: each step's numbers go there too.", show_default=False
    ),
]
AllowCode = Annotated[bool, typer.Option("--allow_code", help="Run the Python functions that the recipe names.")]
AllowUntrusted = Annotated[
    bool,
    typer.Option("--allow_untrusted_labels", help="Learn from a judge that agrees with people no more than chance."),
]
MaxNewTokens = Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Every random draw follows from it.")]
SystemPrompt = Annotated[str | None, typer.Option("--system_prompt", help="System text put before the conversation.")]


@final
class Commands(TyperGroup):
    """The group of all commands: keeps the exact command line, and turns errors that are the user's into one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = ["whelp", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Interrupted) as stop:
            print_line("interrupted", str(stop), "yellow")
            if self._can_resume(ctx) and "--resume" not in str(stop):
                print_line("resume with", resume_command(ctx.obj), "yellow")
            raise typer.Exit(Interrupted.exit_code) from stop
        except WhelpError as error:
            print_line("error", str(error), "red")
            raise typer.Exit(error.exit_code) from error

    def _can_resume(self, ctx: Any) -> bool:
        command = self.commands.get(ctx.invoked_subcommand or "")
        return command is not None and any(parameter.name == "resume" for parameter in command.params)


class StageCommand(TyperCommand):
    """A command whose help lists the settings of its stage, read only when somebody asks."""

    section: str | None = None
    """Where the settings stand in a recipe; None: under the command's name."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from rich.console import Console

        Console(highlight=False).print(_settings_table(self.section or str(self.name)))


def _settings_table(section: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    from whelp.settings import describe

    table = Table(box=None, title=f"Settings of the stage, each as {section}.name=value", title_justify="left")
    for heading in ("name", "default", "what it does"):
        table.add_column(heading, header_style="dim", overflow="fold")
    for setting in describe(section):
        default = "" if setting.default is None else str(setting.default)
        table.add_row(Text(setting.name, "cyan"), default, Text(setting.description))
    return table


def resume_command(argv: Sequence[str]) -> str:
    """The same command, as a shell takes it, with --resume."""
    return shlex.join(argv if "--resume" in argv else [*argv, "--resume"])


def print_line(label: str, text: str, colour: str) -> None:
    """`label: text` to stderr, the label in colour where that shows; long lines are left to the terminal."""
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{label}:" if text else label, f"bold {colour}"), f" {text}" if text else "")
    Console(file=sys.stderr).print(line, soft_wrap=True, highlight=False)


def recipe_of(
    name: str | None, overrides: Sequence[str] | None, options: Mapping[str, object], stages: Sequence[str] = ()
) -> Recipe:
    """The recipe that a command line means; `options` that are None were not given. Raises ConfigError.

    `stages` are those of a stage's own command, which runs once, whatever rounds a recipe has, leaves nothing to a judge, and
    writes to `out` where neither a recipe nor a folder is named.
    """
    from whelp.recipes import load_recipe

    dotted = list(overrides or ())
    if name is not None and "=" in name and not Path(name).is_file():
        name, dotted = None, [name, *dotted]
    given = {key: value for key, value in options.items() if value is not None}
    if stages:
        given["stages"] = f"[{', '.join(stages)}]"
        given |= {"rounds.n": 0} if "ppo" in stages else {}
        given |= {"evaluate.judge": "false"} if {"reward", "dpo"} & set(stages) else {}
        if name is None:
            given.setdefault("output_dir", STAGE_OUTPUT)
    return load_recipe(name, [*(f"{key}={value}" for key, value in given.items()), *dotted])


def trained_model(given: str | None) -> str:
    """The model to look at: the one given, else what the default run ended with."""
    if given is not None:
        return given
    policies = policies_of(Path(DEFAULT_RUN))
    for policy in policies:
        if policy.is_dir():
            return str(policy)
    raise ConfigError(
        f"no model was given and {policies[-1]} does not exist; train one with `whelp run`, or give --model."
    )


def policies_of(run_dir: Path) -> list[Path]:
    """Where PPO's models of a run lie, that of the last round first."""
    from whelp.runs.files import read_json

    rounds = read_json(run_dir / "manifest.json").get("recipe", {}).get("rounds", {}).get("n", 0)
    return [*(run_dir / f"ppo-{k}" for k in range(rounds, 0, -1)), run_dir / "ppo"]


def run_models(run_dir: Path) -> dict[str, str]:
    """The base, the SFT model and the last policy of a run, as far as they are there. Raises `ConfigError` where there is no
    run."""
    from whelp.runs.files import read_json

    recipe = read_json(run_dir / "manifest.json").get("recipe")
    if not recipe:
        raise ConfigError(
            f"there is no run in {run_dir}; train one with `whelp run`, or give models by --model NAME=MODEL."
        )
    found = {"base": recipe["model"]}
    if (run_dir / "sft").is_dir():
        found["sft"] = str(run_dir / "sft")
    if policies := [folder for folder in policies_of(run_dir) if folder.is_dir()]:
        found["rlhf"] = str(policies[0])
    if (run_dir / "dpo").is_dir():
        found["dpo"] = str(run_dir / "dpo")
    return found


def compared_models(given: Sequence[str], run_dir: Path) -> dict[str, str]:
    """The models that are named, or those of a run. Raises `ConfigError` where there are fewer than two."""
    models = name_models(given) if given else run_models(run_dir)
    if len(models) < 2:
        raise ConfigError(
            f"there is only {', '.join(models)}; two models are compared: give them by --model NAME=MODEL."
        )
    return models


def name_models(given: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the one given, else the last part of its path, with the part before where two agree.

    Raises ConfigError where two models end up with one name.
    """
    pairs = [_split(model) for model in given]
    short = [name or _name(source) for name, source in pairs]
    named: dict[str, str] = {}
    for (name, source), base in zip(pairs, short, strict=True):
        label = base if name or short.count(base) == 1 else "-".join(Path(source).parts[-2:])
        if label in named:
            raise ConfigError(f"two models are called {label!r}; name them, for example --model first={source}")
        named[label] = source
    return named


def _name(source: str) -> str:
    """The last part of a path, or of an address."""
    from whelp.addresses import address_of, is_address

    return Path(address_of(source).model if is_address(source) else source).name or source


def _split(model: str) -> tuple[str, str]:
    name, equals, source = model.partition("=")
    return (name, source) if equals and "/" not in name else ("", model)
