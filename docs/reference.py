"""Write what the code itself says into pages: `python docs/reference.py` makes commands.md, settings.md and api.md anew, and
terms.md."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main

from whelp import glossary
from whelp.cli import app
from whelp.settings import describe, sections

HERE = Path(__file__).parent
MODULES = {
    "Run it from Python": ("whelp.pipeline", "whelp.recipes", "whelp.config", "whelp.conversation"),
    "What you may write": ("whelp.rewards.base", "whelp.audit", "whelp.stages.audit.probes", "whelp.runs.tracking"),
    "Nouns and the engine": ("whelp.types", "whelp.engines.base", "whelp.engines.local"),
    "Text and data": ("whelp.text.chat", "whelp.text.formats", "whelp.checkers"),
    "Mathematics": (
        "whelp.maths.policy",
        "whelp.maths.advantage",
        "whelp.maths.preference",
        "whelp.maths.sft",
        "whelp.maths.shaping",
        "whelp.maths.posterior",
        "whelp.maths.calibration",
        "whelp.maths.stats",
        "whelp.maths.significance",
        "whelp.maths.ranking",
    ),
    "Judges": ("whelp.judges.base", "whelp.judges.trust", "whelp.judges.endpoint", "whelp.judges.people"),
}
WRITTEN = "Written by `python docs/reference.py` from {}: change that, not this page."


def pages() -> dict[str, str]:
    """Name of each page, and what it is to hold."""
    return {"commands.md": commands(), "settings.md": settings(), "api.md": api(), "terms.md": glossary.page()}


# -- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    parts = ["# Every command and its options", WRITTEN.format("`whelp COMMAND --help`")]
    parts.append(
        "Options and keys take `-` and `_` alike. `KEY=VALUE` sets any [setting](settings.md) by its dotted name."
    )
    for name, command in walk("whelp", typer.main.get_command(app)):
        parts += [f"## {name}", *_help(command)]
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            parts.append(_table(("option", "default", "what it does"), rows))
    return "\n\n".join(parts) + "\n"


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Each command with its full name, a group before what is in it."""
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from walk(f"{name} {child.name}", child)


def _help(command: Any) -> list[str]:
    """Its paragraphs; those that keep their lines are examples."""
    text = re.sub(r"\[/?bold\]", "`", inspect.cleandoc(command.help or ""))
    found = []
    for paragraph in re.split(r"\n\n+", text):
        kept = paragraph.removeprefix("\b\n")
        found.append(f"```bash\n{kept}\n```" if kept != paragraph else " ".join(kept.split()))
    return [one for one in found if one]


def _row(parameter: Any) -> tuple[str, str, str] | None:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    metavar = parameter.metavar or ""
    if parameter.param_type_name == "option":
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        metavar = "" if parameter.is_flag else metavar or "VALUE"
    else:
        name, metavar = metavar or str(parameter.name).upper(), ""
    default = parameter.default
    shown = "" if default is None or callable(default) or default is False or default in ((), []) else f"`{default}`"
    return f"`{' '.join(filter(None, (name, metavar)))}`", shown, str(getattr(parameter, "help", "") or "")


# -- settings ---------------------------------------------------------------------------------------------------------


def settings() -> str:
    parts = ["# Every setting of a recipe", WRITTEN.format("`src/whelp/config.py`")]
    parts.append(
        "A recipe is YAML with as many of them as differ from the defaults; `whelp init` writes one for your data. On a command "
        "line: `whelp run ppo.kl_coef=0.1`."
    )
    for section in ("", *sections()):
        parts.append(f"## {section or 'The run'}")
        rows = []
        for one in describe(section):
            default = "" if one.default is None else f"`{_plain(one.default)}`"
            rows.append((f"`{one.key}`", default, one.expected, one.description))
        parts.append(_table(("setting", "default", "takes", "what it does"), rows))
    return "\n\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- api --------------------------------------------------------------------------------------------------------------


def api() -> str:
    parts = ["# Python API", WRITTEN.format("the docstrings")]
    parts.append("Shapes and masks are explained in `whelp.types`.")
    for title, names in MODULES.items():
        parts.append(f"## {title}")
        for name in names:
            module = importlib.import_module(name)
            parts += [f"### {name}", inspect.getdoc(module) or ""]
            parts += [_entry(found, thing) for found, thing in _public(module)]
    return "\n\n".join(parts) + "\n"


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that a module defines or offers, in the order in which they are written."""
    offered = getattr(module, "__all__", None)
    for name, thing in vars(module).items():
        is_own = name in offered if offered else getattr(thing, "__module__", None) == module.__name__
        if is_own and not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)):
            yield name, thing


def _entry(name: str, thing: Any) -> str:
    thing = inspect.unwrap(thing)
    lines = [f"#### {name}"]
    if inspect.isfunction(thing) or dataclasses.is_dataclass(thing):
        lines.append(f"```python\n{name}{_signature(thing)}\n```")
    text = inspect.getdoc(thing) or ""
    if text and not text.startswith(f"{name}("):  # a dataclass without one is given its signature
        lines.append(text)
    if inspect.isclass(thing):
        for method, function in vars(thing).items():
            plain = inspect.unwrap(getattr(function, "__func__", function))
            if not method.startswith("_") and inspect.isfunction(plain) and plain.__doc__:
                lines.append(f"`{method}{_signature(plain)}`: {inspect.getdoc(plain)}")
    return "\n\n".join(lines)


class _Plain(str):
    """An annotation that is shown without quotes."""

    __repr__ = str.__str__


def _signature(function: Any) -> str:
    found = inspect.signature(function)
    parameters = [
        one.replace(annotation=_Plain(one.annotation)) if isinstance(one.annotation, str) else one
        for one in found.parameters.values()
        if one.name != "self"
    ]
    result = _Plain(found.return_annotation) if isinstance(found.return_annotation, str) else found.return_annotation
    if inspect.isclass(function):
        result = inspect.Signature.empty
    return str(found.replace(parameters=parameters, return_annotation=result))


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(headings), line(("---",) * len(headings)), *map(line, rows)])


if __name__ == "__main__":
    for page, text in pages().items():
        (HERE / page).write_text(text, encoding="utf-8")
