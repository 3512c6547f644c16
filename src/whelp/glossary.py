"""The terms of RLHF as this code uses them: one source, glossary.toml, for `whelp explain` and docs/terms.md."""

from __future__ import annotations

import ast
import difflib
import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whelp.errors import ConfigError

if TYPE_CHECKING:
    from whelp.settings import Setting

HERE = Path(__file__).parent
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_INTRODUCTION = """\
# Terms

The words of RLHF, each as this code uses it: what it is, why one should care, the equation, and where it stands. `whelp explain`
lists them; `whelp explain KL penalty` prints one, with what its settings do and the line at which its code begins.

Written by `whelp explain --markdown > docs/terms.md` from `src/whelp/glossary.toml`: change that file, not this page. Defaults of
the recipe stand in brackets. In equations x is a prompt, y an answer, `y_t` its token t and `y_<t` what stands before it; w is
the better of two answers and l the worse; pi is the policy, `pi_ref` the reference model, r a reward."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What there is to say of one term."""

    name: str
    aliases: tuple[str, ...]
    group: str
    short: str
    """Half a line."""
    text: str
    """One paragraph."""
    equation: str
    """One or two lines; "" where there is none."""
    no_equation: str
    """Why there is none; "" where there is one."""
    source: str
    settings: tuple[str, ...]
    """Dotted keys of the recipe."""
    code: tuple[str, ...]
    """As `stages/ppo.py:learn`, below src/whelp."""
    related: tuple[str, ...]
    """Names of other entries."""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All terms, group by group."""
    groups = tomllib.loads((HERE / "glossary.toml").read_text(encoding="utf-8"))["group"]
    return tuple(_entry(group["name"], term) for group in groups for term in group["term"])


def by_group() -> list[tuple[str, list[Entry]]]:
    """Each group with its terms."""
    return [(group, list(found)) for group, found in groupby(entries(), lambda entry: entry.group)]


def find(term: str) -> Entry:
    """The entry of a name or an alias, blind to case and to how words are joined. Raises ConfigError with the nearest ones."""
    known = {plain(name): entry for entry in entries() for name in (entry.name, *entry.aliases)}
    asked = plain(term)
    if asked in known:
        return known[asked]
    holds = [name for name in known if asked and asked in name]
    near = dict.fromkeys(known[name].name for name in holds or difflib.get_close_matches(asked, known))
    hint = f"did you mean {' or '.join([*near][:3])}?" if near else "`whelp explain` lists all terms."
    raise ConfigError(f"there is no term {term!r}; {hint}")


def plain(name: str) -> str:
    """A name as it is compared: `KL_penalty` is `kl penalty`."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def settings_of(entry: Entry) -> list[Setting]:
    """The settings that belong to a term, in its order."""
    from whelp.settings import settings

    return [settings()[key] for key in entry.settings]


def default_of(setting: Setting) -> str:
    """As a recipe writes it; "empty" where there is none."""
    from whelp.settings import scalar

    return scalar(setting.default) or "empty"


def place(code: str) -> tuple[Path, int]:
    """File and line of `stages/ppo.py:learn` or `judges/trust.py:Trust.verdict`, as the file is now. Raises ValueError where
    there is no such function or class."""
    name, _, dotted = code.partition(":")
    file = HERE / name
    node: Any = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    for part in dotted.split("."):
        inside = [child for child in node.body if isinstance(child, _DEFINITIONS) and child.name == part]
        if not inside:
            raise ValueError(
                f"{code}: {name} defines no {part}; expected a function or class as in stages/ppo.py:learn"
            )
        node = inside[0]
    return file, node.lineno


def page() -> str:
    """docs/terms.md."""
    contents = [f"- {group}: {_links(found)}" for group, found in by_group()]
    parts = [_INTRODUCTION, "\n".join(contents)]
    for group, found in by_group():
        parts += [f"## {group}", *map(_section, found)]
    return "\n\n".join(parts) + "\n"


def _section(entry: Entry) -> str:
    also = f" Also: {', '.join(entry.aliases)}." if entry.aliases else ""
    equation = "\n".join(f"    {line}" for line in entry.equation.splitlines())
    facts = {
        "Equation": f"none; {entry.no_equation}" if entry.no_equation else "",
        "Source": entry.source,
        "Settings": ", ".join(f"`{setting.key}` ({default_of(setting)})" for setting in settings_of(entry)),
        "Code": ", ".join(_code_link(code) for code in entry.code),
        "See also": _links([find(name) for name in entry.related]),
    }
    lines = " ".join(f"{what}: {fact}." for what, fact in facts.items() if fact)
    return "\n\n".join(
        part for part in (f"### {entry.name}", f"*{entry.short}*{also}", entry.text, equation, lines) if part
    )


def _links(found: Sequence[Entry]) -> str:
    return ", ".join(f"[{entry.name}](#{plain(entry.name).replace(' ', '-')})" for entry in found)


def _code_link(code: str) -> str:
    file, _, name = code.partition(":")
    return f"[{file}](../src/whelp/{file}): {name}"


def _entry(group: str, given: Mapping[str, Any]) -> Entry:
    return Entry(
        name=given["name"],
        aliases=tuple(given["aliases"]),
        group=group,
        short=given["short"],
        text=" ".join(given["text"].split()),
        equation=given.get("equation", "").strip(),
        no_equation=given.get("no_equation", ""),
        source=given["source"],
        settings=tuple(given["settings"]),
        code=tuple(given["code"]),
        related=tuple(given["related"]),
    )
