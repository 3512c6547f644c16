"""The tables that compare people's feedback with a judge's, from records made by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from whelp.runs.files import write_json_atomic
from whelp.text.formats import read_principles

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROMPTS = {"h1": "harm-weapons", "h2": "harm-drugs", "b1": "borderline", "w1": "writing", "c1": "true-claim"}


@pytest.fixture
def constitutions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("constitutions")
    for name in ("constitutions", "results"):
        monkeypatch.setattr(sys.modules[name], "RECORDS", tmp_path)
    yield module
    for name in ("constitutions", "results"):
        sys.modules.pop(name, None)


def record(constitutions, arm, passes: dict[str, float], named: dict[str, float], feedback=None) -> None:
    """One seed of a run: what its models' answers earned, the same for each of them."""
    import results

    answers = {id: {"category": PROMPTS[id], "greedy": passes[id], "length": 10} for id in PROMPTS}
    stages = {"reward": {"train_pairs": 1000, "train_prompts": 200}}
    if feedback:
        stages["feedback"] = feedback
    models = ("base", "helpful", "sft", "rlhf")
    write_json_atomic(
        arm.record(0),
        {
            "seed": 0,
            "identity": results.identity(arm.recipe(0)),
            "stages": stages,
            "answers": dict.fromkeys(models, answers),
            "names_somebody": dict.fromkeys(models, named),
        },
    )


def test_what_differs_from_people_alone(constitutions):
    none = dict.fromkeys(PROMPTS, 0.0)
    record(constitutions, constitutions.PEOPLE, {"h1": 1, "h2": 0, "b1": 1, "w1": 1, "c1": 0}, none)
    record(constitutions, constitutions.BOTH, {"h1": 1, "h2": 1, "b1": 0, "w1": 1, "c1": 1}, none)
    rows = {row[0]: row[1:] for row in constitutions.scores_rows()}
    assert rows["people alone, seed 0, RLHF"][0].startswith("50%")
    difference = rows["both - people alone, seed 0, RLHF"]
    assert [cell.split(" ")[0] for cell in difference] == ["+50.0", "-100.0", "+100.0", "+0.0"]


def test_what_the_labels_were_and_cost(constitutions):
    trust = {"agreement": {"mean": 0.65, "low": 0.56, "high": 0.73, "n": 40}, "flips": {"mean": 0.1}}
    feedback = {
        "labels": 90,
        "pairs": 100,
        "labels_per_hour": 5000.4,
        "cost": 0.25,
        "trusted": True,
        "trust": trust,
    }
    record(constitutions, constitutions.AI, dict.fromkeys(PROMPTS, 1.0), dict.fromkeys(PROMPTS, 0.0), feedback)
    [row] = constitutions.labels_rows()
    assert row == [
        "AI alone, seed 0",
        "1,000 on 200 prompts",
        "90, 90% of the pairs",
        "5,000",
        "0.25",
        "65% (56 to 73), trusted",
        "10%",
    ]


def test_another_constitution_beside_the_one_that_ships(constitutions):
    passes = dict.fromkeys(PROMPTS, 1.0)
    ships = {"h1": 0.0, "h2": 0.0, "b1": 0.0, "w1": 0.0, "c1": 0.0}
    record(constitutions, constitutions.BOTH, passes, ships)
    record(constitutions, constitutions.OTHER, passes | {"h1": 0.0}, ships | {"h1": 1.0, "h2": 1.0, "w1": 1.0})
    harmful, others = constitutions.constitutions_rows()
    assert [cell.split(" ")[0] for cell in harmful[1:6]] == ["0%", "0%", "100%", "+100.0", "-50.0"]
    assert others[4].startswith("+33.3")


def test_a_run_of_another_recipe_is_left_out(constitutions):
    record(constitutions, constitutions.PEOPLE, dict.fromkeys(PROMPTS, 1.0), dict.fromkeys(PROMPTS, 0.0))
    file = constitutions.PEOPLE.record(0)
    file.write_text(file.read_text().replace('"kl_coef": 0.05', '"kl_coef": 0.5'))
    assert constitutions.scores_rows() == []


@pytest.mark.parametrize("text", ["Please talk to a doctor.", "Call the police, or two friends."])
def test_somebody_to_turn_to(constitutions, text):
    assert constitutions.PERSON.search(text)


def test_nobody_to_turn_to(constitutions):
    assert not constitutions.PERSON.search("I will not help with that; it hurts people.")


def test_the_other_constitution_can_be_used():
    principles = read_principles(str(BENCHMARKS / "people_to_turn_to.yaml"))
    assert {one.value for one in principles} == {"harmless"}
