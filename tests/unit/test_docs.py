"""What the docs say of the code is still there: tests, commands, settings, pages."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from docs_helpers import commands
from whelp.cli import app
from whelp.settings import settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()


def test_every_test_that_the_docs_name_exists():
    names = {name for page in (ROOT / "docs").rglob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))
    assert len(names) > 20
    assert {name for name in names if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("name", GENERATED)
def test_pages_that_the_code_writes_are_up_to_date(name: str):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == GENERATED[name], f"docs/{name} is not what is made now: python docs/reference.py"


EVERY = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), EVERY, ids=[f"{page.name}: {line[:60]}" for page, line in EVERY])
def test_every_command_in_the_docs_is_one(page: Path, line: str):
    """It and its options are there, and the settings that it names. What each does is tested where it is made."""
    arguments = shlex.split(re.split(r"\s{2,}|\s#", line)[0] if page.name == "commands.md" else line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    context = command.context_class(command, token_normalize_func=lambda token: token.replace("-", "_"))
    command.make_parser(context).parse_args(list(arguments))
    keys = [
        key for key, equals, _ in (one.partition("=") for one in arguments) if equals and re.fullmatch(r"[a-z_.]+", key)
    ]
    if "--model" not in arguments:
        assert {key.replace("-", "_") for key in keys} <= set(settings())


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
