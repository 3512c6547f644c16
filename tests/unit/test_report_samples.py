"""The report's sample answers: how many fit, their order and their anchors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_helpers import ANSWERS, MODELS, SUITES, Page, completions, put_lines

from whelp.report import before_after, write_report
from whelp.report.evaluation import completed
from whelp.report.samples import anchor, changes, fit, group


@pytest.mark.parametrize(
    "text", ["An ordinary answer of some length. " * 12, "<&\"'漢" * 1500], ids=["ordinary", "hostile"]
)
@pytest.mark.usefixtures("plain")
def test_two_thousand_answers_fit_and_each_prompt_has_its_anchor(run: Path, text: str) -> None:
    lines = completions(per_category=33, samples=2, text=text)[:2000]
    put_lines(run / "evaluate/completions.jsonl", lines)
    path = write_report(run)
    assert len(lines) == 2000 and path.stat().st_size < 2_000_000
    page = Page(path.read_text(encoding="utf-8"))
    assert {f"sample-{line['id']}" for line in lines} <= set(page.ids)
    assert ("texts are cut to" in page.text) == (len(text) > 600)


def test_what_does_not_fit_is_counted() -> None:
    groups = group(collected(completions(per_category=10, samples=0)))
    whole, cut, few = fit(groups, 10**6), fit(groups, 90_000), fit(groups, 10_000)
    assert (whole.groups, whole.limit, whole.left_out) == (tuple(groups), None, 0)
    assert cut.limit in (60, 120, 250)
    assert len(cut.groups) == 70 and max(len(a.text) for g in cut.groups for a in g.answers) == cut.limit + 1
    assert 0 < len(few.groups) == 70 - few.left_out < 70


def collected(lines: list[dict[str, Any]]) -> Any:
    return [completed(line) for line in lines]


def test_changes_are_ordered_by_gain_and_ties_by_the_judge() -> None:
    def answers(name: str, sft: list[bool], rlhf: list[bool], judge: float) -> list[dict[str, Any]]:
        return [
            {"id": name, "model": model, "mode": "sampled" if i else "greedy", "sample": i, "passes": passes,
             "judge": None if i else judge * (model == "rlhf")}
            for model, each in (("sft", sft), ("rlhf", rlhf)) for i, passes in enumerate(each)
        ]  # fmt: skip

    lines = answers("same", [True, True], [True, True], 3.0)
    lines += answers("worse", [True, True], [False, True], 0.0)
    lines += answers("little", [True, False, False], [True, True, False], 0.0)
    lines += answers("liked", [False, False], [True, False], 2.0)
    lines += answers("disliked", [False, False], [True, False], -2.0)
    lines += answers("much", [False, False], [True, True], 0.0)
    found = [(each.group.id, each.gain) for each in changes(group(collected(lines)), "sft", "rlhf")]
    assert found == [("much", 2.0), ("liked", 1.0), ("disliked", 1.0), ("little", 0.5), ("worse", -1.0)]


@pytest.mark.usefixtures("plain")
def test_improvements_and_regressions_link_to_their_sample(run: Path) -> None:
    put_lines(
        run / "evaluate/completions.jsonl",
        [{"id": i, "category": "c", "prompt": i, "model": m, "mode": "greedy", "sample": 0, "completion": f"{m} says",
          "passes": (m == "rlhf") == (i == "up x"), "judge": None} for i in ("up x", "down") for m in ("sft", "rlhf")],
    )  # fmt: skip
    html = write_report(run).read_text(encoding="utf-8")
    better, worse = html.split("<h3>Improvements</h3>")[1].split("<h3>Regressions</h3>")
    assert f'href="#{anchor("up x")}"' in better and 'href="#sample-down"' not in better
    assert 'href="#sample-down"' in worse.split("</table>")[0]


def test_anchors_are_safe_and_differ() -> None:
    names = ["a-1", "a 1", "a/1", "a'1", "", "漢", "A-1", "x" * 500 + " y", "x" * 500 + " z"]
    found = [anchor(name) for name in names]
    assert found[0] == "sample-a-1" and len(set(found)) == len(names)
    assert all(re.fullmatch(r"sample-[A-Za-z0-9._-]+", each) for each in found)


def test_before_after_rows(run: Path) -> None:
    rows = before_after(run)
    assert [row.category for row in rows] == list(SUITES)
    assert (rows[0].behaviour, [a.model for a in rows[0].answers]) == ("declines", list(MODELS))
    last = rows[0].answers[-1]
    assert (last.text, last.passes, last.rate.n) == (ANSWERS["rlhf"], True, 20)
    (run / "evaluate/before_after.json").unlink()
    assert before_after(run) == []
