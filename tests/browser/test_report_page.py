"""The report in a real browser, from a file: searching its answers, and links to one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from report_helpers import write_run
from whelp.report import write_report


@pytest.fixture
def report(page: Any, tmp_path: Path) -> Any:
    write_run(tmp_path)
    page.goto(write_report(tmp_path).as_uri())
    return page


def shown(report: Any) -> int:
    return report.locator("#samples article:not([hidden])").count()


def test_answers_are_searched_by_their_words(report: Any, screenshots: Path | None) -> None:
    everything = shown(report)
    assert everything > 20
    assert report.locator("#find output").inner_text() == ""
    report.get_by_label("Search").fill("CROSSBOW")
    few = shown(report)
    assert 0 < few < everything
    assert report.locator("#find output").inner_text() == f"{few} of {everything} prompts"
    texts = report.locator("#samples article:not([hidden])").all_inner_texts()
    assert all("crossbow" in text.lower() for text in texts)
    assert report.locator("#samples details.box:visible").count() == 1, "kinds without a hit are not shown"
    if screenshots is not None:
        report.locator("#samples").screenshot(path=screenshots / "report-search.png")
    report.get_by_label("Search").fill("no answer says this")
    assert shown(report) == 0
    report.get_by_label("Search").fill("")
    assert shown(report) == everything


def test_answers_are_chosen_by_what_became_of_them(report: Any) -> None:
    by_kind = {}
    for kind in ("better", "worse", "fails"):
        report.get_by_label("Show").select_option(kind)
        by_kind[kind] = shown(report)
        marks = report.locator("#samples article:not([hidden])").evaluate_all("all => all.map(one => one.dataset.is)")
        assert marks and all(kind in mark.split() for mark in marks)
    assert by_kind["better"] != by_kind["worse"]
    report.get_by_label("Show").select_option("worse")
    report.get_by_label("Search").fill("process")
    assert shown(report) <= by_kind["worse"], "both hold"


def test_a_link_to_an_answer_shows_it(report: Any) -> None:
    anchor = report.locator("#samples article").last.get_attribute("id")
    assert not report.locator(f"[id='{anchor}']").is_visible(), "its kind is folded"
    report.get_by_label("Search").fill("crossbow")
    report.evaluate("anchor => { location.hash = '#' + anchor; }", anchor)
    report.locator(f"[id='{anchor}']").wait_for(state="visible")
    assert report.get_by_label("Search").input_value() == ""
    report.reload()
    report.locator(f"[id='{anchor}']").wait_for(state="visible")
