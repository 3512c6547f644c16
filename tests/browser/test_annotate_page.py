"""Ranking by keys alone, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from whelp.feedback.judgements import NewItem
from whelp.feedback.store import Store
from whelp.types import Message
from whelp.web.app import create_app

Serve = Callable[[Any], str]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "feedback.db")
    yield store
    store.close()


def filled(store: Store, count: int, completions: int) -> int:
    project = store.add_project("helpful", guidelines="Prefer what is **true**.")
    said = "It depends. `x = 1` is code.\n\n- one\n- two"
    store.add_items(
        project,
        [
            NewItem(
                (Message("user", f"Question {i}?"),),
                tuple(f"Answer {i}.{k}. {said * (k + 1)}" for k in range(completions)),
            )
            for i in range(count)
        ],
    )
    return project


def shown(page: Any) -> list[str]:
    """Which completion stands at each place, such as 0.1"""
    return [re.search(r"Answer (\d+\.\d+)", text)[1] for text in page.locator(".completion .text").all_inner_texts()]


def ranks_in(page: Any) -> list[str]:
    return [select.input_value() for select in page.locator("#judge select[name=rank]").all()]


def sent(page: Any, said: str) -> None:
    page.locator("#status", has_text=said).wait_for()


def ranks_of(store: Store, project: int) -> list[list[int]]:
    """Of each vote, in the order in which the completions stood."""
    return [[vote.ranks[i] for i in vote.order] for vote in store.votes(project)]


def test_a_ranking_with_a_tie_by_keys(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 2, 4)
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    for key in ("3", "1", "t", "4"):
        page.keyboard.press(key)
    assert ranks_in(page) == ["2", "", "1", "2"]
    page.keyboard.press("Backspace")
    assert ranks_in(page) == ["2", "", "1", ""]
    page.keyboard.press("4")
    page.keyboard.press("Enter")  # the last one left takes the last place
    sent(page, "Sent.")
    assert ranks_of(store, project) == [[2, 4, 1, 3]]
    page.keyboard.press("Enter")
    sent(page, "Give every completion a place")
    assert len(store.votes(project)) == 1


def test_pairs_by_keys(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 4, 2)
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    for keys in (["2"], ["1", "1", "1"], ["t"], ["b"]):
        for key in keys:
            page.keyboard.press(key)
        page.locator("#status").evaluate("line => line.textContent = ''")
        page.keyboard.press("Enter")
        sent(page, "Sent.")
    votes = store.votes(project)
    assert ranks_of(store, project) == [[2, 1], [1, 2], [1, 1], [1, 1]]
    assert [(v.strength, v.is_both_bad) for v in votes] == [(None, False), (2, False), (None, False), (None, True)]
    assert page.get_by_text("nothing left for you").is_visible()


def test_undo_skip_and_flag_by_keys(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 3, 2)
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    first = shown(page)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    sent(page, "Sent.")
    page.keyboard.press("s")
    sent(page, "Skipped.")
    page.keyboard.press("f")
    sent(page, "Say in the comment what is wrong")
    page.keyboard.type("in Dutch")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    sent(page, "Flagged.")
    for _ in range(3):
        page.locator("#status").evaluate("line => line.textContent = ''")
        page.keyboard.press("u")
        sent(page, "Undone.")
    assert shown(page) == first
    assert ranks_in(page) == ["1", "2"], "what was said is there to be changed"
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    sent(page, "Sent.")
    assert ranks_of(store, project) == [[2, 1]]


def test_a_reload_a_new_server_and_a_lost_connection_lose_nothing(
    page: Any, serve: Serve, store: Store, tmp_path: Path
) -> None:
    project = filled(store, 2, 3)
    address = serve(create_app(store))
    page.goto(f"{address}/projects/{project}/annotate")
    order = shown(page)
    with page.expect_response(lambda answer: answer.url.endswith("/draft")):
        page.keyboard.press("2")
        page.keyboard.press("c")
        page.keyboard.type("not sure")
    page.wait_for_timeout(600)
    page.reload()
    assert (shown(page), ranks_in(page)) == (order, ["", "1", ""])
    assert page.locator("textarea").input_value() == "not sure"
    again = Store(tmp_path / "feedback.db")
    serve(create_app(again))
    page.reload()
    assert (shown(page), ranks_in(page)) == (order, ["", "1", ""])
    page.keyboard.press("1")
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    sent(page, "No connection: trying again.")
    page.context.set_offline(False)
    sent(page, "Sent.")
    assert ranks_of(store, project) == [[2, 1, 3]]
    again.close()
    page.problems[:] = [problem for problem in page.problems if "ERR_INTERNET_DISCONNECTED" not in problem]


def test_what_is_dragged_is_ranked(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 1, 3)
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    order = shown(page)
    page.locator(".completion").nth(2).drag_to(page.locator(".completion").nth(0))
    assert ranks_in(page) == ["2", "3", "1"]
    page.keyboard.press("Enter")
    sent(page, "Sent.")
    [vote] = store.votes(project)
    assert f"0.{vote.ranks.index(1)}" == order[2]


def test_guidelines_and_keys_are_one_key_away(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 1, 2)
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    for key, text in (("g", "Prefer what is true."), ("?", "undo what was sent last")):
        page.keyboard.press(key)
        assert page.get_by_text(text).is_visible()
        page.keyboard.press("1")
        page.keyboard.press("Escape")
        assert not page.get_by_text(text).is_visible()
    assert ranks_in(page) == ["", ""], "keys rank nothing behind an open dialog"


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1300])
def test_it_fits_narrow_and_wide_by_day_and_night(
    width: int, colours: str, page: Any, serve: Serve, store: Store, screenshots: Path | None
) -> None:
    project = filled(store, 1, 4)
    page.emulate_media(color_scheme=colours)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    page.keyboard.press("2")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    prompt = page.locator(".prompt")
    page.mouse.wheel(0, 3000)
    page.wait_for_timeout(200)
    assert prompt.bounding_box()["y"] >= -1, "the prompt stays in sight"
    light, dark = [
        page.evaluate("name => getComputedStyle(document.body)[name]", name) for name in ("backgroundColor", "color")
    ]
    assert (sum(map(int, re.findall(r"\d+", light))) > sum(map(int, re.findall(r"\d+", dark)))) == (colours == "light")
    if screenshots:
        page.mouse.wheel(0, -3000)
        page.wait_for_timeout(200)
        page.screenshot(path=screenshots / f"annotate-{width}-{colours}.png")


def test_a_screen_reader_can_name_everything(page: Any, serve: Serve, store: Store) -> None:
    project = filled(store, 1, 3)
    page.goto(f"{serve(create_app(store))}/projects/{project}/annotate")
    for role, name in [
        ("combobox", "Rank of completion 2"),
        ("article", "Completion B"),
        ("region", "Conversation"),
        ("textbox", "Comment"),
        ("button", "Send Enter"),
        ("status", None),
    ]:
        found = page.get_by_role(role, name=name, exact=True) if name else page.get_by_role(role)
        assert found.count() == 1, (role, name)
    page.get_by_role("combobox", name="Rank of completion 2").select_option("1")
    assert page.locator(".completion.first").count() == 1
