"""Files are written whole or not at all; a damaged file and a full disk are told; none of it imports torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import names, run_python

from whelp.errors import RunError, TrainingError
from whelp.runs.cost import Cost
from whelp.runs.files import (
    as_run_error,
    read_json,
    sha256_file,
    sha256_json,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)


def test_runs_import_without_torch() -> None:
    code = """
        import pkgutil, sys, importlib, whelp.runs
        for module in pkgutil.iter_modules(whelp.runs.__path__):
            importlib.import_module(f"whelp.runs.{module.name}")
        print(len([name for name in sys.modules if name.startswith("whelp.runs.")]), "torch" in sys.modules)
    """
    done = run_python(code)
    count, has_torch = done.stdout.split()
    assert int(count) >= 5 and has_torch == "False", done.stderr


def test_atomic_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": [2, "é\u2028"]})
    assert json.loads(path.read_text("utf-8")) == {"a": [2, "é\u2028"]}
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="broken"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_object_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_json_atomic(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_json_is_strict_whatever_the_values(tmp_path: Path) -> None:
    obj = {
        "nan": float("nan"),
        "inf": [np.float32("inf"), -np.inf],
        "numpy": np.arange(3),
        "bool": np.bool_(True),
        "path": Path("a/b"),
        "set": {"b", "a"},
        "cost": Cost(1.5, 2.0),
        1: (1, 2),
        "surrogate": "\ud800",
    }
    write_json_atomic(tmp_path / "a.json", obj)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "a.json").read_bytes(), parse_constant=refuse) == {
        "nan": None,
        "inf": [None, None],
        "numpy": [0, 1, 2],
        "bool": True,
        "path": "a/b",
        "set": ["a", "b"],
        "cost": {"seconds": 1.5, "peak_memory_mb": 2.0, "peak_gpu_memory_mb": 0.0},
        "1": [1, 2],
        "surrogate": "\ud800",
    }


def test_read_json_names_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(RunError, match="expected an object"):
        read_json(tmp_path / "a.json")
    assert read_json(tmp_path / "none.json") == {}


def test_hashes_are_those_of_sha256sum_and_of_known_vectors(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"b": 1, "a": [True, None]}) == hashlib.sha256(b'{"a":[true,null],"b":1}').hexdigest()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    different = [1, 1.0, True, "1", None, float("nan"), float("inf"), float("-inf")]
    assert len({sha256_json(value) for value in different}) == len(different)


FULL_DISK_ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("error", FULL_DISK_ERRORS, ids=lambda error: str(error)[:20])
def test_a_full_disk_says_where_how_much_and_that_nothing_is_lost(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "no" / "such" / "folder" / "a.bin"
    with pytest.raises(RunError) as caught, as_run_error(path):
        raise error
    message = str(caught.value)
    assert str(path) in message and "bytes are free" in message and "Nothing earlier was lost" in message


def test_a_full_disk_is_found_behind_another_exception(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="disk is full"), as_run_error(tmp_path):  # noqa: PT012
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise ValueError("cannot close") from None


def test_a_forbidden_place_is_told_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Make the folder writable"), as_run_error(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    for error in (ValueError("a bug"), TrainingError("a NaN"), OSError(errno.EIO, "broken"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, as_run_error(tmp_path):
            raise error
        assert caught.value is error


def test_free_bytes_are_those_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return shutil._ntuple_diskusage(10, 9, 1234)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(RunError, match=r"1,234 bytes are free"), as_run_error(tmp_path / "a" / "b"):
        raise OSError(errno.ENOSPC, "full")
    assert asked == [tmp_path]


def test_write_bytes_atomic_keeps_bytes(tmp_path: Path) -> None:
    data = bytes(range(256))
    write_bytes_atomic(tmp_path / "a", data)
    assert (tmp_path / "a").read_bytes() == data
