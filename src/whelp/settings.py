"""The recipe's settings as plain facts: what each is called, takes and means; the nearest one to a misspelt key."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from whelp.config import Recipe, Section

_NEAR = 0.6
_SAME_SECTION = 0.3
"""What a name gains by standing in the section that was written: `ppo.num_train_epochs` means `ppo.num_ppo_epochs`."""
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./:-]*")
_NOT_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"}
ABSENT = {
    "per_device_train_batch_size": "batches are per optimizer step here, whatever the devices: per_step_batch_size",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a recipe."""

    key: str
    """Dotted: `ppo.kl_coef`."""
    expected: str
    """What it takes, in words."""
    default: Any
    description: str
    is_text: bool
    """True where any text will do, so that `output_dir: 2024` is a name and not a number."""

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


@functools.cache
def sections() -> Mapping[str, type[Section]]:
    """The parts of a recipe, in its order."""
    kinds = {name: field.annotation for name, field in Recipe.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


@functools.cache
def settings() -> Mapping[str, Setting]:
    """Every setting by its dotted key, in the recipe's order; what a section shares with another stands behind its own."""
    parts = [("", Recipe), *sections().items()]
    found = [_setting(section, kind, name) for section, kind in parts for name in _own_first(kind)]
    return {setting.key: setting for setting in found if setting.key not in sections()}


def _own_first(kind: type[Section]) -> list[str]:
    shared = {name for parent in kind.__mro__[1:] if issubclass(parent, Section) for name in parent.model_fields}
    return sorted(kind.model_fields, key=lambda name: name in shared)


def describe(section: str = "") -> list[Setting]:
    """The settings of one section; '' is the recipe's own."""
    return [setting for setting in settings().values() if setting.section == section]


def nearest(key: str) -> list[str]:
    """The known keys most like `key`: one, several where sections share the name, none where nothing is near."""
    section, _, name = key.rpartition(".")
    likeness: dict[str, float] = {}
    for candidate in (*sections(), *settings()):
        home, _, known = candidate.rpartition(".")
        ratio = difflib.SequenceMatcher(None, name, known).ratio()
        if ratio >= _NEAR:
            likeness[candidate] = ratio + (_SAME_SECTION if home == section else 0)
    best = max(likeness.values(), default=0)
    return [candidate for candidate, ratio in likeness.items() if ratio == best]


def unknown(key: str) -> str:
    """What to say of a key that is none."""
    section, _, name = key.rpartition(".")
    if name in ABSENT:
        return f"unknown; {ABSENT[name]}"
    near = [other.removeprefix(f"{section}.") if section else other for other in nearest(key)]
    if near:
        return f"unknown; did you mean {' or '.join(near)}?"
    names = [setting.name for setting in describe(section)] or list(sections())
    return (
        f"unknown; {section or 'a recipe'} has {', '.join(names)}{', ' + ', '.join(sections()) if not section else ''}"
    )


def to_yaml(recipe: Recipe, commented: bool = True, header: str = "") -> str:
    """Every key of a recipe as YAML that reads back as the same recipe; `commented` adds what each key does.

    `header` is text for the top of the file, written as comments.
    """
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    for section in ("", *sections()):
        part = getattr(recipe, section) if section else recipe
        if section:
            about = (sections()[section].__doc__ or "").strip()
            lines += ["", *([f"# {about}"] if commented else []), f"{section}:"]
        for setting in describe(section):
            line = f"{'  ' if section else ''}{setting.name}: {scalar(getattr(part, setting.name))}".rstrip()
            lines.append(f"{line}  # {setting.description}" if commented else line)
    return "\n".join(lines) + "\n"


def _setting(section: str, kind: type[Section], name: str) -> Setting:
    schema, field = _schema(kind)[name], kind.model_fields[name]
    default = None if field.default is PydanticUndefined else field.default
    branches = schema.get("anyOf", [schema])
    is_text = any(branch.get("type") == "string" and not {"enum", "const"} & set(branch) for branch in branches)
    key = f"{section}.{name}" if section else name
    return Setting(key, expected(schema), default, field.description or "", is_text)


@functools.cache
def _schema(kind: type[Section]) -> Mapping[str, Any]:
    return kind.model_json_schema()["properties"]


def expected(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(expected(branch) for branch in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        item = schema["items"] if "items" in schema else schema["prefixItems"][0]
        return f"a list of {expected(item).removeprefix('one of ').replace('a number', 'numbers')}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "nothing") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "exclusiveMaximum": "below",
        "maximum": "of at most",
    }
    said = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return f" {' and '.join(said)}" if said else ""


def scalar(value: Any) -> str:
    """A value as YAML on one line; None is left empty."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and not _is_special(value) else _quoted(value)
    return json.dumps(value)


def _is_special(text: str) -> bool:
    return text.lower() in _NOT_TEXT or text.endswith(":") or not re.match(r"[A-Za-z_/]|\.{0,2}/", text)


def _quoted(text: str) -> str:
    """JSON's quotes are YAML's double quotes; ASCII only, because YAML ends lines at more characters than JSON."""
    return re.sub(r"(?:\\u[0-9a-f]{4})+", _joined_surrogates, json.dumps(text)).replace("\x7f", r"\x7f")


def _joined_surrogates(match: re.Match[str]) -> str:
    """JSON writes a character beyond the BMP as two halves, YAML as one."""
    text = json.loads(f'"{match[0]}"')
    return "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text)
