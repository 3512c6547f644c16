"""Parquet files, and data sets of a hub on localhost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from hub_server import serving
from pyarrow import parquet

from whelp.errors import DataError
from whelp.text.formats import read_demonstrations, read_rankings
from whelp.text.formats.lines import is_of_the_hub

PAIRS = [
    {"prompt": "Hello", "chosen": "Hi there", "rejected": "Go away"},
    {"prompt": "Bye", "chosen": "Goodbye", "rejected": "No", "margin": 1.5},
]


def write(path: Path, records: list[dict]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def test_parquet_holds_what_json_lines_hold(tmp_path: Path) -> None:
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in PAIRS))
    keys = {key: None for record in PAIRS for key in record}
    table = write(tmp_path / "pairs.parquet", [keys | record for record in PAIRS])
    found, expected = read_rankings(table), read_rankings(lines)
    assert found.records == expected.records
    assert found.format == expected.format == "prompt/chosen/rejected"
    assert found.sha256 != expected.sha256


def test_turns_in_parquet(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello", "name": None}, {"role": "assistant", "content": "Hi", "name": "x"}]
    (found,) = read_demonstrations(write(tmp_path / "turns.parquet", [{"messages": turns}])).records
    assert [(m.role, m.content) for m in found.messages] == [("user", "Hello"), ("assistant", "Hi")]


def test_a_broken_row_of_parquet_is_named(tmp_path: Path) -> None:
    table = write(tmp_path / "pairs.parquet", [*PAIRS, {"prompt": "Hm", "chosen": "", "rejected": "x"}])
    with pytest.raises(DataError, match=r"pairs\.parquet:3: chosen is empty"):
        read_rankings(table)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"prompt,chosen\n", b"PAR1" + bytes(40) + b"PAR1"])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pairs.parquet"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"pairs\.parquet: is no parquet file that can be read"):
        read_rankings(file)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True), ("owner/name:test", True), ("owner/name:config:test", True), ("owner/na.me-1_b", True),
        ("owner/pairs.jsonl", False), ("name", False), ("a/b/c", False), ("owner/name:", False), ("/etc/passwd", False),
    ],
)  # fmt: skip
def test_what_is_taken_for_a_data_set_of_the_hub(name: str, expected: bool) -> None:
    assert is_of_the_hub(name) is expected


def test_a_folder_that_is_here_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="data is read from"):
        read_rankings("owner/name")


def test_a_prompt_of_bytes_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": b"Hello", "completion": text, "label": text == "Hi"} for text in ("Hi", "No")]
    with pytest.raises(DataError, match=r"pairs\.parquet:1: prompt"):
        read_rankings(write(tmp_path / "pairs.parquet", rows))


def test_a_column_that_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows():
        yield PAIRS[0]
        raise ImportError("To support decoding images, please install 'Pillow'.")

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: rows())
    with pytest.raises(DataError, match=r"owner/pictures: .*cannot be read: To support decoding images"):
        read_rankings("owner/pictures")


# -- a hub ------------------------------------------------------------------------------------------------------------

CODE = """
import sys
from whelp.errors import DataError
from whelp.text.formats import read_rankings
try:
    found = read_rankings(sys.argv[1])
    print([(r.prompt.text, r.completions, r.margin) for r in found.records], found.sha256)
except DataError as error:
    print("DataError:", error)
"""


def read_elsewhere(name: str) -> str:
    """In a process of its own: the hub library reads HF_ENDPOINT once, when it is imported."""
    result = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    write(folder / "train.parquet", [{"margin": None} | record for record in PAIRS])
    write(folder / "test.parquet", [{"margin": 2.0} | PAIRS[0]])
    with serving(folder, "datasets", tmp_path / "cache", monkeypatch) as handler:
        yield handler


def test_a_data_set_of_the_hub(hub) -> None:
    found = read_elsewhere("owner/tiny")
    assert found.startswith("[('Hello', ('Hi there', 'Go away'), 0.0), ('Bye', ('Goodbye', 'No'), 1.5)]")
    assert any(path.endswith("/train.parquet") for path in hub.asked)
    assert not [path for path in hub.asked if "agent" in path or "telemetry" in path], "nobody is told who reads"
    assert read_elsewhere("owner/tiny:train") == found, "the same rows have the same hash"
    assert read_elsewhere("owner/tiny:test").startswith("[('Hello', ('Hi there', 'Go away'), 2.0)]")


@pytest.mark.proof
def test_a_data_set_that_is_not_there(hub) -> None:
    found = read_elsewhere("owner/other")
    assert found.startswith("DataError: owner/other: there is no such file, and the hub's data set cannot be read")
    assert "owner/name:configuration:split" in found
    assert "Unknown split" in read_elsewhere("owner/tiny:validation")


@pytest.mark.proof
def test_a_data_set_that_wants_its_code_run(hub) -> None:
    (hub.folder / "tiny.py").write_text("raise SystemExit('it was run')")
    assert "Dataset scripts are no longer supported" in read_elsewhere("owner/tiny")
