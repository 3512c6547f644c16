"""A data file becomes rows, each with the line it stands on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from whelp.errors import DataError
from whelp.text.formats.tables import HUB_ID, hub_records, parquet_records

SUFFIXES = (".jsonl", ".json", ".yaml", ".csv", ".parquet")
BUILTIN = "builtin:"
DATABASE = "db:"
"""What people said in a project of the annotation database."""
CSV_NUMBERS = ("probability", "margin", "weight")


@dataclass(frozen=True, slots=True)
class Row:
    """One record as the file has it: `value` is what the JSON says, `problem` why it could not be read."""

    line: int
    value: Any = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The name, hash and rows of one data file."""

    name: str
    sha256: str
    rows: tuple[Row, ...]


def read_source(path: str | Path) -> Source:
    """Read a .jsonl, .json, .yaml, .csv or .parquet file, the packaged file that `builtin:<name>` names, the votes of
    `db:<project>`, or where there is no such file a data set of the hub. Raises DataError."""
    name = str(path)
    if name.startswith(DATABASE) or is_of_the_hub(name):
        records = _votes(name.removeprefix(DATABASE)) if name.startswith(DATABASE) else hub_records(name)
        written = json.dumps(records, sort_keys=True, default=str).encode()
        return Source(name, hashlib.sha256(written).hexdigest(), _numbered(records))
    suffix, content = _builtin(name.removeprefix(BUILTIN)) if name.startswith(BUILTIN) else _file(Path(path))
    if suffix == ".parquet":
        return Source(name, hashlib.sha256(content).hexdigest(), _numbered(parquet_records(name, content)))
    text = _decode(name, content)
    rows = {".jsonl": _line_rows, ".json": _list_rows, ".yaml": _yaml_rows, ".csv": _csv_rows}[suffix](name, text)
    return Source(name, hashlib.sha256(content).hexdigest(), tuple(rows))


def is_of_the_hub(name: str) -> bool:
    """Whether this is written as a data set of the hub is, and no file of that name is here."""
    path = Path(name)
    return HUB_ID.fullmatch(name) is not None and path.suffix.lower() not in SUFFIXES and not path.parent.is_dir()


def _numbered(records: Sequence[Any]) -> tuple[Row, ...]:
    return tuple(Row(line, record) for line, record in enumerate(records, start=1))


def builtins() -> dict[str, Traversable]:
    """The packaged data files, by the name behind `builtin:`."""
    packaged = {Path(file.name): file for file in files("whelp.data").iterdir()}
    return {path.stem: packaged[path] for path in sorted(packaged) if path.suffix in SUFFIXES}


def _votes(project: str) -> list[dict[str, Any]]:
    from whelp.feedback.export import votes_of

    return votes_of(project)


def _file(path: Path) -> tuple[str, bytes]:
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: data is read from {', '.join(SUFFIXES)} files; convert it to one of these")
    try:
        return path.suffix.lower(), path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; give a path to a data file, or {BUILTIN}<name>") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _builtin(name: str) -> tuple[str, bytes]:
    packaged = builtins()
    if name not in packaged:
        raise DataError(f"{BUILTIN}{name}: no such data ships with whelp; there is {', '.join(packaged) or 'none'}")
    return Path(packaged[name].name).suffix, packaged[name].read_bytes()


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: is not UTF-8 text; save the file as UTF-8") from error


def _line_rows(name: str, text: str) -> Iterator[Row]:
    # Not splitlines: JSON strings may hold U+2028 and its kind as they are.
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            yield Row(line, json.loads(part))
        except (json.JSONDecodeError, RecursionError) as error:
            yield Row(line, problem=_not_json(error))


def _list_rows(name: str, text: str) -> Iterator[Row]:
    try:
        values = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise DataError(f"{name}:{error.lineno}: {_not_json(error)}") from error
    except RecursionError as error:
        raise DataError(f"{name}: {_not_json(error)}") from error
    if not isinstance(values, list):
        raise DataError(f"{name}: holds one JSON {_kind(values)}; expected a list of records (or use .jsonl)")
    decoder, position, line = json.JSONDecoder(), text.find("[") + 1, 1
    counted = 0
    for _ in values:
        while text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        yield Row(line, value)


def _yaml_rows(name: str, text: str) -> Iterator[Row]:
    """A list of records; each with the line that it begins on."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="rt").load(text)
    except YAMLError as error:
        raise DataError(f"{name}: is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, CommentedSeq):
        raise DataError(f"{name}: holds no list of records; expected one, each beginning with a dash")
    for i, value in enumerate(values):
        yield Row(values.lc.item(i)[0] + 1, value)


def _csv_rows(name: str, text: str) -> Iterator[Row]:
    """A header, then a record a row; an empty cell is no value, and one that holds a JSON list or number is read as that. A
    column without a name, such as a table's index, is passed over."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    while True:
        try:
            if reader.fieldnames is None:  # this reads the header, so that the line where a row begins is known
                return
            line = reader.line_num + 1
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}:{line}: is not valid CSV: {error}") from error
        if None in row:
            yield Row(line, problem="has more cells than the header has names")
        else:
            yield Row(line, {key: _cell(key, value) for key, value in row.items() if key and value})


def _cell(key: str, value: str) -> Any:
    if value.lstrip().startswith(("[", "{")) or key in CSV_NUMBERS:
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value


def _not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg} (column {error.colno})"
    return "is nested too deeply"


def _kind(value: object) -> str:
    """What JSON calls a value."""
    names: dict[type, str] = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
