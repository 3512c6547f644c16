"""Adjudication, the playground, the lead's pages and runs, in a real browser; by keys where people work by keys."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from whelp.feedback.judgements import Judgement, NewItem
from whelp.feedback.store import Store
from whelp.types import Message
from whelp.web.app import create_app
from whelp.web.playground import PROJECT, Playground

Serve = Callable[[Any], str]
SAID = {
    "base": "To answer this you will first want to consider a number of different things. The first thing is the first.",
    "sft": "Salt comes from rocks: rain wears them away, and rivers carry what they lose to the sea.",
    "rlhf": "Rivers bring a little salt from the rocks, and the sea keeps it when water evaporates.",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "feedback.db")
    yield store
    store.close()


def disputed(store: Store, count: int = 2) -> int:
    """A project of pairs that two people see the other way round; one has a flag too."""
    project = store.add_project("helpful", overlap=3, guidelines="Prefer what is true.")
    store.add_items(
        project,
        [
            NewItem((Message("user", f"Why is the sea salty? ({i})"),), (SAID["sft"], SAID["base"]))
            for i in range(count)
        ],
    )
    for name, best in (("ann", SAID["sft"]), ("bob", SAID["base"])):
        user = store.add_user(name, "annotator")
        while (task := store.take(project, user)) is not None:
            ranks = tuple(1 if text == best else 2 for text in task.completions)
            said = Judgement("vote", ranks, strength=3, comment="It says why." if name == "ann" else "")
            store.submit(user, task.assignment, said, f"{name}-{task.assignment}-request")
    return project


def said_on_page(page: Any, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def shot(page: Any, screenshots: Path | None, name: str) -> None:
    if screenshots:
        page.screenshot(path=screenshots / f"{name}.png", full_page=True)


def fits(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"


def test_adjudication_by_keys(page: Any, serve: Serve, store: Store, screenshots: Path | None) -> None:
    project = disputed(store)
    page.goto(f"{serve(create_app(store))}/projects/{project}/adjudicate")
    assert page.get_by_text("It says why.").is_visible()
    assert page.get_by_role("region", name="What was said").get_by_role("row").count() == 3
    shot(page, screenshots, "adjudicate")
    fits(page, 400)
    page.keyboard.press("1")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    said_on_page(page, "Sent.")
    page.keyboard.press("u")
    said_on_page(page, "Undone.")
    assert page.locator("#judge select[name=rank]").first.input_value() == "1"
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    said_on_page(page, "Sent.")
    page.keyboard.press("c")
    page.keyboard.type("spam")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    said_on_page(page, "Flagged.")
    assert page.get_by_text("Nobody is at odds").is_visible()
    [verdict] = store.votes(project, is_verdict=True)
    assert [verdict.ranks[i] for i in verdict.order] == [2, 1]
    assert len(store.withdrawn(project)) == 1


class Models:
    """They say what they were told to, a word at a time."""

    def __init__(self, said: dict[str, str], pause: float = 0.0):
        self.said, self.pause = said, pause
        self.asked: list[list[str]] = []

    def refuse_long(self, messages: Any) -> None:
        pass

    def answers(self, messages: Any, names: list[str], key: Any) -> Iterator[tuple[str, str]]:
        self.asked.append([message.content for message in messages])
        words = {name: re.findall(r"\S+\s*", text) for name, text in self.said.items()}
        for place in range(max(map(len, words.values()))):
            for name in names:
                if place < len(words[name]):
                    time.sleep(self.pause)
                    yield name, words[name][place]


def test_a_blind_vote_in_the_playground_by_keys(
    page: Any, serve: Serve, store: Store, screenshots: Path | None
) -> None:
    models = Models(SAID, pause=0.02)
    page.goto(f"{serve(create_app(store, models=Playground(models, list(SAID))))}/playground")
    page.keyboard.type("Why is the sea <b>salty</b>?")
    page.keyboard.press("Control+Enter")
    first = page.locator("#answers .said").first
    page.locator("#answers .said", has_text=re.compile(r"\w")).first.wait_for()
    begun = first.inner_text()
    said_on_page(page, "Which is better?")
    assert len(begun) < len(first.inner_text()), "it was shown while it was said"
    assert page.locator("#answers .name").all_inner_texts() == ["Model 1", "Model 2", "Model 3"]
    texts = page.locator("#answers .said").all_inner_texts()
    assert sorted(texts) == sorted(SAID.values())
    shot(page, screenshots, "playground-blind")
    page.keyboard.press("2")
    said_on_page(page, "Kept.")
    names = page.locator("#answers .name").all_inner_texts()
    assert [SAID[name] for name in names] == texts
    shot(page, screenshots, "playground-voted")
    fits(page, 400)
    [vote] = store.votes(store.project(PROJECT))
    [item] = store.items(store.project(PROJECT))
    assert item.completions[vote.ranks.index(1)] == texts[1]
    assert item.sources[vote.ranks.index(1)] == names[1]
    page.keyboard.press("a")
    page.keyboard.type("And the lakes?")
    page.keyboard.press("Control+Enter")
    said_on_page(page, "Which is better?")
    assert models.asked == [
        ["Why is the sea <b>salty</b>?"],
        ["Why is the sea <b>salty</b>?", texts[1], "And the lakes?"],
    ]
    page.keyboard.press("t")
    said_on_page(page, "Kept.")
    assert [vote.ranks for vote in store.votes(store.project(PROJECT))][1] == (1, 1, 1)
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("#talk .turn").count() == 0


def test_a_lost_connection_in_the_playground_keeps_the_question(page: Any, serve: Serve, store: Store) -> None:
    page.goto(f"{serve(create_app(store, models=Playground(Models(SAID), list(SAID))))}/playground")
    page.context.set_offline(True)
    page.keyboard.type("Hello?")
    page.keyboard.press("Control+Enter")
    said_on_page(page, "No connection. Ask again.")
    assert page.locator("#talk .turn").count() == 0
    page.context.set_offline(False)
    page.keyboard.press("a")
    page.keyboard.type("Hello?")
    page.keyboard.press("Control+Enter")
    said_on_page(page, "Which is better?")
    page.problems[:] = [problem for problem in page.problems if "ERR_INTERNET_DISCONNECTED" not in problem]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_lead_makes_a_project_and_reads_what_came_in(
    colours: str, page: Any, serve: Serve, store: Store, screenshots: Path | None, tmp_path: Path
) -> None:
    address = serve(create_app(store, runs_folder=tmp_path / "runs"))
    page.emulate_media(color_scheme=colours)
    page.goto(address)
    page.get_by_label("New project").fill("garden")
    page.get_by_role("button", name="Make").click()
    file = tmp_path / "todo.jsonl"
    file.write_text(json.dumps({"prompt": "Why?", "completions": ["So.", "Because."]}) + "\n")
    page.get_by_label("Prompts with completions").set_input_files(file)
    page.get_by_role("button", name="Add").click()
    page.get_by_text("0 on 0 of 1 items").wait_for()
    page.get_by_label("People who judge each").fill("2")
    page.get_by_label("Guidelines").fill("Be kind.")
    page.get_by_role("button", name="Save").click()
    assert store.rules(store.project("garden")).overlap == 2
    disputed(store, 6)
    page.goto(f"{address}/projects/{store.project('helpful')}")
    assert page.get_by_text("0% (0 to 0); 63% to 77%").is_visible()
    shot(page, screenshots, f"lead-{colours}")
    fits(page, 400)
    page.goto(address)
    shot(page, screenshots, f"projects-{colours}")
    fits(page, 400)
    page.goto(f"{address}/people")
    page.get_by_role("button", name="Make a link").click()
    assert "/invites/" in page.get_by_label("Link").input_value()
    shot(page, screenshots, f"people-{colours}")
    fits(page, 400)


def test_a_run_is_shown_as_it_goes(
    page: Any, serve: Serve, store: Store, screenshots: Path | None, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "assistant"
    (run / "ppo").mkdir(parents=True)
    manifest = {"name": "assistant", "command": "whelp run", "recipe": {"model": "m"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "ppo" / "STARTED.json").write_text("{}")

    def step(number: int) -> None:
        metrics = {
            "objective/scores": 0.1 * number,
            "objective/rlhf_reward": 0.08 * number,
            "objective/kl": 0.4 * number,
        }
        metrics |= {
            "objective/entropy": 2.0 - 0.05 * number,
            "response_length": 60 + number,
            "finished": 0.9,
            "repetition": 0.02,
        }
        for name, row in (
            ("metrics", metrics),
            ("samples", {"prompt": f"why {number}?", "completion": "So.", "score": 0.1}),
        ):
            with open(run / "ppo" / f"{name}.jsonl", "a") as file:
                file.write(json.dumps({"step": number} | row) + "\n")

    for number in range(1, 9):
        step(number)
    page.clock.install()
    page.goto(f"{serve(create_app(store, runs_folder=run.parent))}/runs/assistant")
    assert page.get_by_text("why 8?").is_visible()
    assert page.locator("svg.plot").count() >= 5
    assert page.locator("svg.plot path").first.evaluate("line => getComputedStyle(line).stroke") != ""
    step(9)
    page.clock.fast_forward(6000)
    page.get_by_text("why 9?").wait_for()
    shot(page, screenshots, "run")
    fits(page, 400)
    page.get_by_role("link", name="3", exact=True).click()
    assert page.get_by_text("why 3?").is_visible()
