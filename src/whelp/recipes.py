"""A recipe from a YAML file and dotted overrides, with every mistake named by file, line and key, all at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from whelp.config import Recipe
from whelp.errors import ConfigError
from whelp.recipe_checks import Mistake, mistakes
from whelp.settings import Setting, describe, nearest, sections, settings, to_yaml, unknown

__all__ = ["DEFAULT", "Setting", "describe", "find_recipe", "load_recipe", "packaged_recipes", "to_yaml"]

DEFAULT = "assistant"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a value was given; places sort as a reader meets them."""

    order: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Given:
    """One value of the user's."""

    value: Any
    place: Place


@dataclass(slots=True)
class Reading:
    """What was read so far: the last value of each key, and what is wrong."""

    given: dict[str, Given] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def wrong(self, place: Place, key: str, text: str) -> None:
        self.problems.append((place, f"key {key!r}: {text}"))


def load_recipe(path_or_name: str | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, or of a packaged name ("assistant", "smoke"; None is the default), with overrides.

    An override is `key=value`, `ppo.kl_coef=0.05`; it wins over the file. `-` and `_` are alike in keys.
    Raises ConfigError that names all mistakes at once, each by file, line, key and what was expected.
    """
    file = find_recipe(path_or_name)
    reading = Reading()
    _read_file(file, reading)
    for number, override in enumerate(overrides):
        _read_override(override, number, reading)
    recipe = _validate(file, reading)
    if reading.problems or recipe is None:
        raise ConfigError(_report(file, reading.problems))
    return recipe


def packaged_recipes() -> dict[str, Path]:
    """The recipes that ship, by name: in an installed package, and in a checkout at its root."""
    package = Path(__file__).parent
    root = package.parents[1]
    folders = [package / "recipe_files", *([root / "recipes"] if (root / "pyproject.toml").is_file() else [])]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_recipe(path_or_name: str | None) -> Path:
    """The file of a recipe; raises ConfigError where there is none."""
    name = path_or_name or DEFAULT
    if Path(name).is_file():
        return Path(name)
    packaged = packaged_recipes()
    if name in packaged:
        return packaged[name]
    near = difflib.get_close_matches(Path(name).stem, packaged, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"no recipe {name!r}: it is no file here and none of the recipes that ship ({', '.join(packaged)}).{hint} "
        "`whelp init` writes one for your own data."
    )


def _read_file(file: Path, reading: Reading) -> None:
    try:
        root = _yaml().compose(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    except (YAMLError, RecursionError) as error:
        raise ConfigError(_bad_yaml(file, error)) from error
    if isinstance(root, MappingNode):
        try:
            _walk(root, "", file, reading)
        except RecursionError as error:  # an alias inside what it names
            raise ConfigError(_bad_yaml(file, error)) from error
    elif root is not None and root.tag != _NULL:
        place = Place(root.start_mark.line + 1, f"{file}:{root.start_mark.line + 1}")
        reading.problems.append((place, "expected lines of `key: value`"))


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _bad_yaml(file: Path, error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        parts = [part for part in (error.problem, error.context) if part]
        return f"{file}:{mark.line + 1}: is not YAML: {', '.join(parts)} (column {mark.column + 1})."
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).strip().splitlines()[0]
    return f"{file}: is not YAML: {reason}."


def _walk(node: MappingNode, section: str, file: Path, reading: Reading) -> None:
    """Take in the keys of one mapping, and of the sections in it."""
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        place = Place(line, f"{file}:{line}")
        name = str(key_node.value).replace("-", "_") if isinstance(key_node, ScalarNode) else "(not text)"
        key = f"{section}.{name}" if section else name
        if key in lines:
            reading.wrong(place, key, f"given twice; it stands on line {lines[key]} already")
        lines.setdefault(key, line)
        if key in sections():
            _walk_section(key, value, place, file, reading)
        elif key in settings():
            _take(settings()[key], value, place, reading)
        else:
            reading.wrong(place, key, unknown(key))
            guess = next((near for near in nearest(key) if near in sections()), None)
            if guess and isinstance(value, MappingNode):
                _walk(value, guess, file, reading)


def _walk_section(key: str, value: Any, place: Place, file: Path, reading: Reading) -> None:
    if isinstance(value, MappingNode):
        _walk(value, key, file, reading)
    elif value.tag != _NULL:
        names = ", ".join(setting.name for setting in describe(key))
        reading.wrong(place, key, f"is a section; expected indented lines below it, of {names}")


def _take(setting: Setting, node: Any, place: Place, reading: Reading) -> None:
    is_plain_text = setting.is_text and isinstance(node, ScalarNode) and node.tag != _NULL
    try:
        value = node.value if is_plain_text else _yaml().constructor.construct_object(node, deep=True)
    except (YAMLError, ValueError) as error:
        reason = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        reading.wrong(place, setting.key, f"cannot be read ({reason}); expected {setting.expected}")
        return
    reading.given[setting.key] = Given(tuple(value) if isinstance(value, list) else value, place)


def _read_override(text: str, number: int, reading: Reading) -> None:
    place = Place(10**9 + number, f"override {text!r}")
    key, equals, value = text.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals:
        reading.problems.append((place, "expected key=value, for example ppo.kl_coef=0.05"))
    elif key in sections():
        reading.wrong(place, key, f"is a section; expected one of its keys, for example {describe(key)[0].key}=...")
    elif key not in settings():
        reading.wrong(place, key, unknown(key))
    else:
        try:
            _take(settings()[key], _override_node(settings()[key], value), place, reading)
        except YAMLError:
            reading.wrong(place, key, f"given {value!r}, which is not YAML; expected {settings()[key].expected}")


def _override_node(setting: Setting, text: str) -> Any:
    """The YAML node of a value from a command line: a list or quoted text, else the whole of it is one scalar."""
    yaml = _yaml()
    is_marked = text.startswith(('"', "'")) or (text.startswith("[") and not setting.is_text)
    if is_marked:
        return yaml.compose(text)
    return ScalarNode(yaml.resolver.resolve(ScalarNode, text, (True, False)), text)


def _validate(file: Path, reading: Reading) -> Recipe | None:
    """The recipe without its wrong values, whose faults and those between values are added to `reading`."""
    good = dict(reading.given)
    try:
        recipe = Recipe.model_validate(_nested(good), strict=True)
    except ValidationError as error:
        for key in dict.fromkeys(_key_of(fault["loc"]) for fault in error.errors()):
            given = good.pop(key)
            reading.wrong(given.place, key, f"given {_shown(given.value)}; expected {settings()[key].expected}")
        recipe = Recipe.model_validate(_nested(good), strict=True)
    is_wrong = set(reading.given) - set(good)
    for mistake in mistakes(recipe):
        if not is_wrong & set(mistake.keys):
            reading.wrong(_place_of(mistake, file, good), mistake.keys[0], mistake.text)
    return recipe


def _place_of(mistake: Mistake, file: Path, given: Mapping[str, Given]) -> Place:
    places = [given[key].place for key in mistake.keys if key in given]
    return places[0] if places else Place(0, str(file))


def _nested(given: Mapping[str, Given]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, item in given.items():
        section, _, name = key.rpartition(".")
        home = values.setdefault(section, {}) if section else values
        home[name] = item.value
    return values


def _key_of(location: Sequence[str | int]) -> str:
    """pydantic adds list positions and union branches behind the key."""
    depth = 2 if location[0] in sections() else 1
    return ".".join(str(part) for part in location[:depth])


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return repr(value) if isinstance(value, str) else str(value)


def _report(file: Path, problems: Sequence[tuple[Place, str]]) -> str:
    def lines() -> Iterator[str]:
        for place, text in sorted(problems, key=lambda problem: problem[0]):
            yield f"{place}: {text}"

    if len(problems) == 1:
        return next(lines())
    listed = "\n".join(f"  {line}" for line in lines())
    return f"{file.name}: {len(problems)} mistakes\n{listed}"
