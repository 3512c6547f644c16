"""`whelp annotate`: what people are to rank, what they said, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whelp.cli import show as shown
from whelp.cli.base import (
    PREPARE_PANEL,
    MaxNewTokens,
    ModelSource,
    OutputDir,
    Overrides,
    Seed,
    Temperature,
    print_line,
    recipe_of,
    trained_model,
)

if TYPE_CHECKING:
    from whelp.feedback.store import Store
    from whelp.types import Estimate

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="The name of a project.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="FILE|URL",
        envvar="WHELP_DATABASE",
        help="A SQLite file, or postgresql://user:password@host/name; feedback.db if not given.",
        show_default=False,
    ),
]

Host = Annotated[str, typer.Option("--host", help="The address to listen on; others than this machine need accounts.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535)]
Overlap = Annotated[int, typer.Option("--overlap", min=1, help="People who judge each item of a new project.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Let people rank what a model says, and train on what they said.")
    group.command("serve")(serve)
    group.command("import")(add)
    group.command("sample")(sample)
    group.command("train")(train)
    group.command("shuffle")(shuffle)
    group.command("export")(export)
    group.command("stats")(stats)
    group.command("user")(user)
    app.add_typer(group, name="annotate", rich_help_panel=PREPARE_PANEL)


def serve(
    database: Database = None,
    runs: Annotated[Path, typer.Option("--runs", help="The folder of the runs that are shown.")] = Path("runs"),
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Open the pages on which people rank, and their lead sees what came in and trains on it.

    \b
    whelp annotate serve                                  on this machine, without accounts
    whelp annotate user ann --role admin                  then for a team:
    whelp annotate serve --host 0.0.0.0 --database postgresql://user:password@host/name
    """
    with opened(database) as store:
        run_server(store, host, port, "", runs_folder=runs)


def run_server(store: Store, host: str, port: int, path: str, **options: Any) -> None:
    """Until somebody stops it. Raises `ConfigError` where other machines would get in without an account."""
    from whelp.errors import ConfigError

    try:
        import uvicorn

        from whelp.web.app import create_app
        from whelp.web.security import LOCAL_NAMES
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'whelp[web]'") from error
    from whelp.feedback.accounts import Accounts

    is_local = host in LOCAL_NAMES or host == "::1"
    if not is_local and Accounts(store).is_empty():
        raise ConfigError(
            f"--host {host} lets other machines in, and there are no accounts yet: whelp annotate user NAME --role admin"
        )
    app = create_app(store, **options) if is_local else create_app(store, None, **options)
    typer.echo(f"open http://{host}:{port}{path} (Ctrl-C ends it)")
    uvicorn.run(app, host=host, port=port, log_level="warning")


def user(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    role: Annotated[str, typer.Option("--role", help="admin, adjudicator or annotator.")] = "annotator",
    database: Database = None,
) -> None:
    """Add somebody who may sign in; asks for their password."""
    from whelp.errors import ConfigError
    from whelp.feedback.accounts import Accounts
    from whelp.feedback.store import ROLES

    if role not in ROLES:
        raise ConfigError(f"--role: given {role!r}; expected one of {', '.join(ROLES)}")
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    with opened(database) as store:
        Accounts(store).add(name, password, role)  # pyright: ignore[reportArgumentType]
    typer.echo(f"{name} may sign in ({role})")


def add(
    project: Project,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Prompts with completions, ranked or not; a file or hub id.")
    ],
    overlap: Overlap = 1,
    gold: Annotated[bool, typer.Option("--gold", help="The ranks are known to be right: everybody is asked.")] = False,
    database: Database = None,
) -> None:
    """Add what is to be ranked; a project that is not there yet is made. What was added before is left as it is.

    \b
    whelp annotate import helpful completions.jsonl --overlap 2
    whelp annotate import helpful known.jsonl --gold
    """
    from whelp.text.items import read_items

    items, format = read_items(file, gold)
    with opened(database) as store:
        added = store.add_items(_made(store, project, overlap), items)
    typer.echo(f"{project}: {added} of {len(items)} items are new ({format})")


def sample(
    project: Project,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Prompts; a file, hub id or builtin:prompts.")],
    model: ModelSource = None,
    n: Annotated[int, typer.Option("--n", min=2, help="Answers to each prompt.")] = 4,
    overlap: Overlap = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many of the prompts, drawn at random.", show_default=False)
    ] = None,
    temperature: Temperature = 1.0,
    max_new_tokens: MaxNewTokens = 96,
    seed: Seed = 0,
    database: Database = None,
) -> None:
    """Let a model answer prompts, and add what it said to what is to be ranked. Without --model: the default run's.

    \b
    whelp annotate sample helpful builtin:prompts --limit 100
    whelp annotate sample helpful prompts.jsonl --model runs/assistant/sft --n 2
    """
    import random

    from whelp.engines.base import SamplingParams
    from whelp.labelling import sample_items
    from whelp.progress import make_progress
    from whelp.text.formats import read_prompts

    prompts = read_prompts(file).records
    if limit is not None and limit < len(prompts):
        prompts = random.Random(seed).sample(prompts, limit)
    params = SamplingParams(n, temperature, max_new_tokens, ("annotate", seed))
    with opened(database) as store:
        id = _made(store, project, overlap)
        added, alike = sample_items(store, id, prompts, trained_model(model), params, make_progress())
    typer.echo(f"{project}: {added} new items of {len(prompts)} prompts")
    if alike:
        print_line("left out", f"{alike} prompts to which the model had one answer only", "yellow")


def train(
    ctx: typer.Context,
    project: Project,
    overrides: Overrides = None,
    model: ModelSource = None,
    output_dir: OutputDir = None,
    database: Database = None,
) -> None:
    """Train a reward model on a project's votes, and ask next for what it is least sure of. Writes FOLDER/reward.

    Few votes are read several times, and the model is trained again on a quarter and on half of the prompts, to see
    whether more votes would help.

    \b
    whelp annotate train helpful
    whelp annotate train helpful --model runs/assistant/sft --output_dir runs/helpful trainable_layers=4
    """
    import os

    from whelp import pipeline
    from whelp.feedback.database import DATABASE_VARIABLE, default_database
    from whelp.labelling import order_by_doubt, settings_for
    from whelp.progress import make_progress

    os.environ[DATABASE_VARIABLE] = database or default_database()
    with opened(database) as store:
        id = store.project(project)
        settings = settings_for(len(store.votes(id)))
        options = {
            "model": model,
            "reward.model": model,
            "reward.train_file": f"db:{project}",
            "output_dir": output_dir or f"runs/annotate-{id}",
            **settings,
        }
        recipe, progress = recipe_of(None, overrides, options, ("reward",)), make_progress()
        result = pipeline.run(recipe, argv=ctx.obj, resume=True, progress=progress)
        progress.stage("order", "what this reward model is least sure of comes first")
        count = order_by_doubt(store, id, recipe, result.path / "reward", progress)
    shown.summary(result, "reward")
    typer.echo(f"{project}: {count} items are asked for in a new order")


def shuffle(project: Project, database: Database = None) -> None:
    """Ask for items at random again, not for what a reward model is least sure of."""
    with opened(database) as store:
        store.prioritise(store.project(project), {})
    typer.echo(f"{project}: items come at random")


def export(
    project: Project,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file to write.")],
    format: Annotated[str, typer.Option("--format", help="preference, kwise, kto, openai or raw.")] = "kwise",
    database: Database = None,
) -> None:
    """Write what people said as records that train. `whelp run reward.train_file=db:PROJECT` needs no file.

    \b
    whelp annotate export helpful votes.jsonl
    whelp annotate export helpful pairs.jsonl --format preference
    """
    from whelp.errors import ConfigError
    from whelp.feedback.export import FORMATS, rows_of
    from whelp.runs.files import as_lines, write_text_atomic

    if format not in FORMATS:
        raise ConfigError(f"--format: given {format!r}; expected one of {', '.join(FORMATS)}")
    with opened(database) as store:
        found, left_out = rows_of(store, store.project(project), format)  # pyright: ignore[reportArgumentType]
    write_text_atomic(to, as_lines(found))
    typer.echo(f"{to}: {len(found)} records ({format})")
    for name, count in left_out.items():
        print_line("left out", f"{count} {name}; --format raw keeps them", "yellow")


def stats(project: Project, database: Database = None) -> None:
    """How much people agree, and what of their votes is habit."""
    from whelp.feedback.statistics import PUBLISHED, statistics

    with opened(database) as store:
        found = statistics(store, store.project(project))
    alpha = found.alpha
    shown.table(f"{project}: {found.votes} votes on {found.judged} of {found.items} items", ("what", "found"), [
        ("two people agree", _percent(found.agreement, "nothing was judged twice")),
        ("published studies", PUBLISHED),
        ("Krippendorff's alpha", f"{alpha.mean:.2f} ({alpha.low:.2f} to {alpha.high:.2f})" if alpha else found.why_no_alpha),
        ("verdicts", f"{found.verdicts}, and {found.waiting} items wait for one"),
    ])  # fmt: skip
    rows = [
        (
            user,
            str(own.votes),
            f"{own.seconds:.0f} s",
            "-" if own.per_hour is None else f"{own.per_hour:.0f}",
            _percent(own.position),
            _percent(own.length),
            _percent(own.length_of_others),
            _percent(own.gold),
            str(own.hasty),
        )
        for user, own in found.habits.items()
    ]
    heads = (
        "who",
        "votes",
        "median",
        "an hour",
        "takes the first",
        "the longer",
        "as others do",
        "known ones right",
        "hasty",
    )
    if rows:
        shown.table("Each person", heads, rows)
    if any(found.matrix.values()):
        two = [(f"{a} and {b}", _percent(agreed)) for (a, b), agreed in found.matrix.items()]
        shown.table("Each two", ("who", "agree"), two)


def _made(store: Store, project: str, overlap: int) -> int:
    """The project of that name, which is made where there is none."""
    known = store.projects()
    return known[project] if project in known else store.add_project(project, overlap=overlap)


@contextmanager
def opened(database: str | None) -> Iterator[Store]:
    from whelp.feedback.database import default_database
    from whelp.feedback.store import Store

    store = Store(database or default_database())
    try:
        yield store
    finally:
        store.close()


def _percent(found: Estimate | None, otherwise: str = "-") -> str:
    return otherwise if found is None else f"{found.mean:.0%} ({found.low * 100:.0f} to {found.high * 100:.0f})"
