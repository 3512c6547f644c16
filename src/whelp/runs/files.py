"""Files that are either the old ones or the new ones, never half of one; and what to say when a disk is full."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whelp.errors import RunError, WhelpError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
# The last two are what torch.save says of a short write: it loses the errno on the way.
_FULL_TEXTS = ("No space left", "Disk quota exceeded", "PytorchStreamWriter failed writing", "unexpected pos")


@contextmanager
def as_run_error(path: Path) -> Iterator[None]:
    """Around any write to `path`: a full disk or a forbidden place becomes a `RunError` that says what to do.

    Libraries that lose the errno (safetensors, torch) are known by their text. Other exceptions pass unchanged.
    """
    try:
        yield
    except WhelpError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        if any(_is_full(each) for each in chain):
            raise RunError(
                f"The disk is full: {path} could not be written ({_free_bytes(path):,} bytes are free there). "
                "Nothing earlier was lost. Free some space and give the same command again, a command that trains with --resume."
            ) from error
        if any(isinstance(each, OSError) and each.errno in _NO_PLACE for each in chain):
            raise RunError(
                f"{path} could not be written: {error}. Make the folder writable or choose another one."
            ) from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(nearest_existing(path)).free


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def fsync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk and would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replace `path` as a whole; a kill at any instant leaves the old content or the new. Makes the folder if needed.

    Raises:
        RunError: the disk is full or the place may not be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_native_id()}")
    try:
        with as_run_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to be filled. It takes the name `path` when the block ends, whole and on the disk, and is
    removed where the block fails.

    Raises:
        RunError: `path` holds something already, or the disk is full or the place may not be written.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is there already and is not empty; nothing is overwritten. Give another --output_dir.")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with as_run_error(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                fsync(file)
            os.rename(temporary, path)
            fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of UTF-8 text."""
    write_bytes_atomic(path, encode(text))


def write_json_atomic(path: Path, obj: Any) -> None:
    """`write_bytes_atomic` of indented, strictly valid JSON: NaN and infinities become null (see `plain`)."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON, a record a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """The object stored in `path`, or `{}` when there is no such file.

    Raises:
        RunError: the file is not a JSON object.
    """
    try:
        obj = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(
            f"{path} is not valid JSON ({error}). Restore it, or remove it with what it describes."
        ) from error
    if not isinstance(obj, dict):
        raise RunError(f"{path} holds a JSON {type(obj).__name__}, expected an object. Restore it or remove it.")
    return obj


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate, which has no UTF-8, becomes `\\udxxx`: inside JSON that is its own escape."""
    return text.encode("utf-8", errors="backslashreplace")


def plain(obj: Any, non_finite: Callable[[float], Any] = lambda number: None) -> Any:
    """`obj` in terms of JSON's own types.

    Paths become strings, tuples and sets lists (sets sorted), dataclasses objects, numpy and torch values numbers or
    lists, and every NaN or infinite float `non_finite` of itself.

    Raises:
        TypeError: a value of any other type.
    """
    if obj is None or isinstance(obj, bool | str):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else non_finite(float(obj))
    if isinstance(obj, Mapping):
        return {str(key): plain(value, non_finite) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value, non_finite) for value in obj]
    if isinstance(obj, set | frozenset):
        return sorted((plain(value, non_finite) for value in obj), key=canonical_json)
    if isinstance(obj, Path):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: plain(getattr(obj, field.name), non_finite) for field in dataclasses.fields(obj)}
    if callable(tolist := getattr(obj, "tolist", None)):
        return plain(tolist(), non_finite)
    raise TypeError(f"cannot write a {type(obj).__name__} as JSON: {obj!r}")


def canonical_json(obj: Any) -> str:
    """One text for equal objects: sorted keys, no spaces, ASCII; NaN and infinities as the strings that name them."""
    return json.dumps(plain(obj, repr), sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(obj: Any) -> str:
    """Hex digest of `canonical_json(obj)`."""
    return hashlib.sha256(canonical_json(obj).encode("ascii")).hexdigest()


def sha256_model(folder: Path) -> str:
    """Hex digest of a model's weights and configuration."""
    weights = sorted(folder.glob("*.safetensors"))
    return sha256_json([sha256_file(file) for file in (*weights, folder / "config.json")])


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
