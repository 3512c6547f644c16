"""A line a step: `metrics.jsonl` and `samples.jsonl`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from whelp.errors import RunError
from whelp.runs.files import as_run_error, encode, plain, write_bytes_atomic
from whelp.runs.tracking import Tracker


@final
class MetricsLog:
    """Appends JSON lines to `<stage_dir>/<filename>`; makes the folder if needed.

    A line is handed to the system whole before `append` returns, so a killed process loses none of them;
    `save_checkpoint` brings them to the disk. A `tracker` hears the finite numbers of each line behind it.
    """

    def __init__(self, stage_dir: Path, filename: str = "metrics.jsonl", tracker: Tracker | None = None) -> None:
        self.path = Path(stage_dir) / filename
        self.tracker = tracker

    def append(self, step: int, **values: Any) -> None:
        """Write `{"step": step, **values}`. JSON has no NaN and no infinity: a value that is one, or holds one, gets
        null in its place and its key is listed under "nan".

        Raises:
            RunError: the disk is full or may not be written.
        """
        record: dict[str, Any] = {"step": int(step)}
        nan: list[str] = []
        for key, value in values.items():
            missing: list[float] = []
            record[key] = plain(value, missing.append)  # append returns None, which is what stands in the line
            if missing:
                nan.append(key)
        if nan:
            record["nan"] = nan
        line = encode(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        with as_run_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
        if self.tracker is not None:
            self.tracker.log(self.path.parent.name, int(step), _numbers(record))

    def truncate_after(self, step: int) -> None:
        """Before resuming from the checkpoint of `step`: drop the lines of later steps, which will be written again,
        and a last line torn by a kill. The lines kept keep their bytes.

        Raises:
            RunError: a line other than the last is no JSON object with a step.
        """
        if not self.path.exists():
            return
        kept = [line for line, record in _records(self.path) if record["step"] <= step]
        write_bytes_atomic(self.path, b"".join(line + b"\n" for line in kept))

    def whole(self) -> list[dict[str, Any]]:
        """All records, to be gone on from: a last line torn by a kill is dropped from the file.

        Raises:
            RunError: a line other than the last is no JSON object with a step.
        """
        self.truncate_after(sys.maxsize)
        return self.read(self.path)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The records of such a file, a torn last line left out; [] when there is no file yet.

        Raises:
            RunError: a line other than the last is no JSON object with a step.
        """
        return [record for _, record in _records(path)] if path.exists() else []


def _numbers(record: Mapping[str, Any]) -> Mapping[str, float]:
    found = {
        key: value for key, value in record.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    found.pop("step")
    return found


def _records(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    # Cut at the newline byte alone: str.splitlines would also cut at U+2028 inside an answer.
    lines = path.read_bytes().split(b"\n")
    last = len(lines) if lines[-1] else len(lines) - 1
    records = []
    for number, line in enumerate(lines[:last], start=1):
        try:
            record = json.loads(line)
            is_record = isinstance(record, dict) and isinstance(record.get("step"), int)
        except ValueError:
            record, is_record = None, False
        if is_record:
            records.append((line, record))
        elif number < last:
            raise RunError(
                f"{path}, line {number}: expected a JSON object with a step, found {line[:80]!r}. "
                "Remove that line, or the stage's folder to run the stage again."
            )
    return records
