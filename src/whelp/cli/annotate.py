"""`whelp annotate`: what people are to rank, what they said, and how far it can be trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whelp.cli import show as shown
from whelp.cli.base import PREPARE_PANEL, print_line

if TYPE_CHECKING:
    from whelp.feedback.store import Store
    from whelp.types import Estimate

NOTHING = "nothing judged twice"
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


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Let people rank what a model says, and train on what they said.")
    group.command("serve")(serve)
    group.command("import")(add)
    group.command("export")(export)
    group.command("stats")(stats)
    group.command("user")(user)
    app.add_typer(group, name="annotate", rich_help_panel=PREPARE_PANEL)


def serve(
    database: Database = None,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; others than this machine need accounts.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
) -> None:
    """Open the page on which people rank.

    \b
    whelp annotate serve                                  on this machine, without accounts
    whelp annotate user ann --role admin                  then for a team:
    whelp annotate serve --host 0.0.0.0 --database postgresql://user:password@host/name
    """
    from whelp.errors import ConfigError

    try:
        import uvicorn

        from whelp.web.app import create_app
        from whelp.web.security import LOCAL_NAMES
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'whelp[web]'") from error
    from whelp.feedback.accounts import Accounts

    is_local = host in LOCAL_NAMES or host == "::1"
    with opened(database) as store:
        if not is_local and Accounts(store).is_empty():
            raise ConfigError(
                f"--host {host} lets other machines in, and there are no accounts yet: whelp annotate user NAME --role admin"
            )
        app = create_app(store) if is_local else create_app(store, None)
        typer.echo(f"open http://{host}:{port} (Ctrl-C ends it)")
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
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="People who judge each item.")] = 1,
    gold: Annotated[bool, typer.Option("--gold", help="The ranks are known to be right: everybody is asked.")] = False,
    database: Database = None,
) -> None:
    """Add what is to be ranked; a project that is not there yet is made. What was added before is left as it is.

    \b
    whelp annotate import helpful completions.jsonl --overlap 2
    whelp annotate import helpful known.jsonl --gold
    """
    from whelp.feedback.judgements import NewItem
    from whelp.text.formats import read_completions, read_rankings

    loaded = read_rankings(file) if gold else read_completions(file)
    with opened(database) as store:
        known = store.projects()
        id = known[project] if project in known else store.add_project(project, overlap=overlap)
        items = [
            NewItem(
                ranking.prompt.messages,
                tuple(ranks := dict(zip(ranking.completions, ranking.ranks, strict=True))),
                category=ranking.prompt.category,
                gold=tuple(ranks.values()) if gold else None,
            )
            for ranking in loaded.records
        ]
        added = store.add_items(id, items)
    typer.echo(f"{project}: {added} of {len(items)} items are new ({loaded.format})")


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
    from whelp.feedback.export import FORMATS, rows
    from whelp.runs.files import write_text_atomic

    if format not in FORMATS:
        raise ConfigError(f"--format: given {format!r}; expected one of {', '.join(FORMATS)}")
    with opened(database) as store:
        id = store.project(project)
        found, left_out = rows(store.items(id), store.votes(id), format)  # pyright: ignore[reportArgumentType]
    write_text_atomic(to, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    typer.echo(f"{to}: {len(found)} records ({format})")
    for name, count in left_out.items():
        print_line("left out", f"{count} {name}; --format raw keeps them", "yellow")


def stats(project: Project, database: Database = None) -> None:
    """How much people agree, and what of their votes is habit."""
    from whelp.feedback import agreement

    with opened(database) as store:
        id = store.project(project)
        items, votes, rules = store.items(id), store.votes(id), store.rules(id)
    pairs = agreement.pairs_of(votes)
    agreed = agreement.agreement(pairs)
    judged = len({vote.item for vote in votes})
    shown.table(f"{project}: {len(votes)} votes on {judged} of {len(items)} items", ("what", "found"), [
        ("two people agree", _percent(agreed, NOTHING)),
        ("published studies", "63% to 77%"),
        ("Krippendorff's alpha", _alpha(agreement.alpha(pairs), agreed)),
    ])  # fmt: skip
    words = {item.id: [len(text.split()) for text in item.completions] for item in items}
    gold = {item.id: item.gold for item in items if item.gold is not None}
    rows = [
        (
            user,
            str(found.votes),
            f"{found.seconds:.0f} s",
            "-" if found.per_hour is None else f"{found.per_hour:.0f}",
            _percent(found.position),
            _percent(found.length),
            _percent(found.length_of_others),
            _percent(found.gold),
            str(found.hasty),
        )
        for user, found in agreement.habits(votes, words, gold, rules.min_seconds).items()
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
    each_two = agreement.matrix(pairs)
    if any(found is not None for found in each_two.values()):
        two = [(f"{a} and {b}", _percent(found)) for (a, b), found in each_two.items()]
        shown.table("Each two", ("who", "agree"), two)


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


def _alpha(found: Estimate | None, agreed: Estimate | None) -> str:
    if found is None:
        return NOTHING if agreed is None else "undefined: all is alike"
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"
