"""The report: what it says of a complete run, on a page that stands alone."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import whelp.report
from report_helpers import Page, page_of, write_round, write_run
from whelp.report import write_report
from whelp.report.collect import collect


def test_a_complete_run_makes_a_page_that_stands_alone(run: Path) -> None:
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == run / "report.html" and page.open == []
    assert not page.tags & {"link", "img", "iframe", "object", "base", "form"}
    text = path.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text), "no other script may run"
    assert not [name for name in page.attributes if name.startswith("on") or name == "srcset"]
    assert "://" not in path.read_text(encoding="utf-8") and "@import" not in path.read_text(encoding="utf-8")
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link.removeprefix("#") not in page.ids or not link.startswith("#")} == set()
    assert "missing:" not in page.text and "could not be read" not in page.text


@pytest.mark.usefixtures("plain")
def test_sections_stand_in_their_order(run: Path) -> None:
    sections = ["before-after", "checks", "pipeline", "ppo", "training", "reward-model", "judge", "changes", "samples"]
    assert [name for name in page_of(run).ids if name in [*sections, "origin"]] == [*sections, "origin"]


def test_the_numbers_of_the_artifacts_are_on_the_page(run: Path) -> None:
    seen = page_of(run).text
    for expected in (
        "79% (72 to 86)", "+6 points (1 to 11)", "+39 points (30 to 47)", "6.3 (5.8 to 6.9)",  # evaluation
        "7 min 51 s", "2.3 GiB", "held-out loss 3.02 to 1.58", "2,560 sampled answers", "24,310 tokens",  # pipeline
        "Trusted. It orders pairs better", "+12 points (6 to 18)", "RLHF preferred over SFT", "63% (55 to 71)",
        "whelp run recipes/assistant.yaml", "2.13.0", "cd" * 32, "builtin:demonstrations", "1 h 27 min",  # origin
        "2026-01-02 03:04 UTC", '"kl_coef": 0.05', "borderline (78% to 62%)",
        "RLHF passes 6 points more checks than SFT (95% interval 1 to 11",
        "how often right8%", "temperature scaling (T 1.62)2%", "at equal rank0.27 (0.11 to 0.4", "ai71% (58 to 84)",
        "shuffled ranks, 2 (no leak: 50%)52% (46 to 58)", "125 prompts", "498 prompts",
    ):  # fmt: skip
        assert expected in seen, expected


@pytest.mark.usefixtures("plain")
def test_after_online_rounds_the_page_shows_the_newest_policy_and_what_all_of_it_cost(run: Path) -> None:
    write_round(run, 1)
    data = collect(run)
    assert [name for name in data.stages if name[-1].isdigit()] == ["label-1", "reward-1", "ppo-1"]
    assert data.newest("ppo").name == "ppo-1" and data.newest("reward").name == "reward-1"
    assert data.reward.accuracy.mean == 0.81 and data.rounds[0][1].mean == 0.55
    assert [rollout.text for rollout in data.rollouts] == ["Salt comes from rocks."]
    seen = page_of(run).text
    for expected in ("PPO, round 1", "Ranking of answers, round 1", "answers to 12 prompts", "a policy, whose answers are ranked",
                     "1 h 30 min"):  # fmt: skip
        assert expected in seen, expected
    assert "rewarded by these same checks" in seen, "the rounds were ranked by them"


@pytest.mark.usefixtures("plain")
def test_a_round_that_waits_for_people_leaves_the_first_policy_on_the_page(run: Path) -> None:
    write_round(run, 1)
    for stage in ("reward-1", "ppo-1"):
        shutil.rmtree(run / stage)
    assert collect(run).newest("ppo").name == "ppo"
    assert "PPO, round 1\nnot run" in page_of(run).text


@pytest.mark.usefixtures("plain")
def test_an_evaluation_older_than_its_policy_is_called_so(run: Path) -> None:
    said = "The evaluation is older than PPO"
    manifest, done = (json.loads((run / name).read_text()) for name in ("manifest.json", "evaluate/DONE.json"))
    manifest["inputs"]["evaluate"] = {"rlhf": {"path": str(run / "ppo"), "sha256": "f"}}
    done["parts"]["inputs"] = {"rlhf": "f"}
    for name, record in (("manifest.json", manifest), ("evaluate/DONE.json", done)):
        (run / name).write_text(json.dumps(record))
    assert said not in page_of(run).text
    (run / "ppo/STARTED.json").write_text(json.dumps({"fingerprint": "another", "parts": {}}))
    assert said in page_of(run).text


def test_the_same_artifacts_give_the_same_bytes_in_another_process_without_torch(run: Path, tmp_path: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    other = write_run(tmp_path / "elsewhere")
    code = (
        f"import sys; from pathlib import Path; from whelp.report import write_report; write_report(Path({str(other)!r}));"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules), 'slow to import, and not needed'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment() | {"PYTHONHASHSEED": "7"})
    assert (other / "report.html").read_bytes() == first


def environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": str(Path(whelp.report.__file__).parents[2])}


def test_the_report_imports_no_stage() -> None:
    for path in Path(whelp.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("whelp"):
                assert node.module == "whelp.errors" or (node.module or "").startswith(("whelp.report", "whelp.runs"))
