"""The report of missing, broken and hostile artifacts."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from report_helpers import SUITES, change_json, completions, page_of, put, put_lines, rate
from whelp.errors import RunError
from whelp.report import before_after, write_report
from whelp.report.collect import RunData, collect


@pytest.mark.parametrize("stage", ["sft", "reward", "judge", "ppo", "evaluate"])
@pytest.mark.usefixtures("plain")
def test_a_missing_stage_is_said_in_its_place(run: Path, stage: str) -> None:
    for file in (run / stage).iterdir():
        file.unlink()
    page = page_of(run)
    assert page.open == [] and "not run" in page.text
    if stage != "judge":
        assert f"this stage was not run (there is no {stage}/ with results)" in page.text
    put(run / stage / "STARTED.json", {"fingerprint": "f"})
    assert "begun, not finished" in page_of(run).text


@pytest.mark.usefixtures("plain")
def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "Nothing can be concluded yet: the models were not evaluated." in page.text
    assert page.text.count("missing: this stage was not run") == 8 and "The command is missing" in page.text


@pytest.mark.usefixtures("plain")
def test_no_run_at_all_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no run at .*nowhere"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"There is no run at .*nowhere"):
        before_after(tmp_path / "nowhere")


def each_number(value: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {key: each_number(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [each_number(inner, new) for inner in value]
    return new if isinstance(value, int | float) else value


def repr_short(value: Any) -> str:
    return repr(value)[:12]


@pytest.mark.parametrize(
    "new", [None, "<b>text</b>", True, -1, 1e308, 10**400, [[]], {"mean": {}}, math.nan, -math.inf], ids=repr_short
)
def test_nulls_and_nonsense_in_place_of_every_number_break_nothing(run: Path, new: Any) -> None:
    (run / "manifest.json").unlink()
    for path in run.rglob("*.json"):
        put(path, each_number(json.loads(path.read_text()), new))
    for path in run.rglob("*.jsonl"):
        put_lines(path, [each_number(json.loads(line), new) for line in path.read_text().splitlines()[:20]])
    page = page_of(run)
    assert page.open == [] and "Before and after" in page.text
    assert not re.search(r"\b(nan|NaN|inf|None|null|Undefined)\b", page.text)
    if new is None:
        assert "Nothing can be concluded yet" in page.text and not re.search(r"(?<!\d)0%", page.text)
    assert len(before_after(run)) == len(SUITES)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("new", [None, 3, "text", [1], {"a": {"b": 1}}])
def test_artifacts_of_another_shape_break_nothing(run: Path, new: Any) -> None:
    for path in run.rglob("*.json"):
        put(path, dict.fromkeys(json.loads(path.read_text()), new))
    for path in run.rglob("*.jsonl"):
        put_lines(path, [dict.fromkeys(json.loads(line), new) for line in path.read_text().splitlines()[:3]])
    assert page_of(run).open == []


def test_a_hostile_answer_stays_text(run: Path) -> None:
    hostile = (
        '</dd></details><script>alert(1)</script><img src=x onerror=alert(2)>"\' onclick="alert(3) </style><style>*{} '
        "{{ 7*7 }} {% raw %} &lt; ]]> \x00\x1b[31m \u202egnp.exe \ud800 " + "x" * 500
    )
    category = '</svg><script>alert(4)</script> $\\frac{1}{ id="p" 漢字'
    put_lines(
        run / "evaluate/completions.jsonl",
        [
            line | {"completion": hostile, "prompt": hostile, "id": f"{category}{line['id']}", "category": category}
            for line in completions(3)
        ],
    )
    found = json.loads((run / "evaluate/before_after.json").read_text())
    for row in found["rows"]:
        row |= {"prompt": hostile, "category": category, "behaviour": hostile}
        for each in row["answers"].values():
            each["text"] = hostile
    put(run / "evaluate/before_after.json", found)
    suites = json.loads((run / "evaluate/metrics.json").read_text())["suites"]
    change_json(run / "evaluate/metrics.json", suites={category: suites["self"]})
    change_json(run / "reward/metrics.json", verdict=hostile, by_category={category: {"accuracy": rate(0.5)}})
    page = page_of(run)
    assert page.open == [] and not page.tags & {"img"}
    assert (run / "report.html").read_text(encoding="utf-8").count("<script") == 1, "that of the search"
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text and "␀␛[31m" in page.text
    assert len(page.ids) == len(set(page.ids))
    assert all(link.removeprefix("#") in page.ids for link in page.links)


@pytest.mark.usefixtures("plain")
def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "reward/metrics.json").write_text("{broken")
    (run / "judge/metrics.json").write_text("[1]")
    with open(run / "ppo/metrics.jsonl", "a") as file:
        file.write('not json\n{"step": 40, "objective/scores": 1}\n{"step": 41, "torn')
    data: RunData = collect(run)
    assert [problem.split(" ")[0] for problem in data.problems] == [
        "reward/metrics.json",
        "judge/metrics.json",
        "ppo/metrics.jsonl:",
    ]
    assert len(data.stages["ppo"].log) == 41
    assert "Some files could not be read" in page_of(run).text
