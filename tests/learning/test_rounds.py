"""Online rounds: the policy's own answers are ranked, and reward model and policy are trained again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from pipeline_helpers import WORDS, changed, run, states, write_jsonl

from whelp import pipeline, rounds
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError, Interrupted, ModelError
from whelp.progress import SilentProgress
from whelp.runs.manifest import Run
from whelp.splits import split_rankings
from whelp.text.formats import read_rankings
from whelp.workplace import Workplace

ROUND = ["label", "reward", "ppo"]


@pytest.fixture
def online(recipe: Recipe, tmp_path: Path) -> Recipe:
    check = {"kind": "length", "any": [*"abcdefghijklmnopqrstuvwxyz"], "max_words": 2}
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"talk of {w}", "check": check} for w in WORDS])
    recipe = changed(recipe, "ppo", train_file=str(prompts), total_episodes=16)
    return changed(changed(recipe, "evaluate", judge=False), "rounds", n=2, label="checker", prompts=6)


def results(recipe: Recipe, stage: str) -> dict:
    return json.loads((Path(recipe.output_dir) / stage / "metrics.json").read_text())


def test_two_rounds(online: Recipe) -> None:
    folder = Path(online.output_dir)
    summary = run(online)
    expected = ["sft", "reward", "ppo", *(f"{stage}-{k}" for k in (1, 2) for stage in ROUND), "evaluate"]
    assert [cost.stage for cost in summary.costs] == expected
    fresh = [read_rankings(folder / f"label-{k}" / "rankings.jsonl").records for k in (1, 2)]
    assert all(2 <= len(r.completions) <= 4 and min(r.ranks) == 1 < max(r.ranks) for part in fresh for r in part)
    learned = [results(online, name)["train_rankings"] for name in ("reward", "reward-1", "reward-2")]
    assert [b - a for a, b in pairwise(learned)] == [len(part) for part in fresh]
    for k in (1, 2):
        labelled = results(online, f"label-{k}")
        assert labelled["prompts"] - labelled["uncompared"] == len(fresh[k - 1]) > 0
        assert 0 <= labelled["accuracy"]["low"] <= labelled["accuracy"]["high"] <= 1
    read = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert read["ppo-2"]["reward"]["path"] == str(folder / "reward-2")
    assert read["ppo-2"]["model"]["path"] == str(folder / "sft"), "every round starts from the SFT model"
    assert read["label-2"]["policy"]["path"] == str(folder / "ppo-1")
    assert read["evaluate"]["rlhf"]["path"] == str(folder / "ppo-2")
    assert "Online rounds" in (folder / "report.html").read_text()

    assert set(states(run(online)).values()) == {"unchanged"}
    more = states(run(changed(online, "rounds", n=3)))
    assert {name for name, state in more.items() if state == "ran"} == {"label-3", "reward-3", "ppo-3", "evaluate"}


@pytest.mark.proof
def test_ranks_are_those_of_the_label_and_a_model_agrees_with_itself(online: Recipe) -> None:
    """Labelled by the very reward model that is asked."""
    alone = changed(online, "rounds", n=0).model_copy(update={"stages": ("sft", "reward", "ppo")})
    run(alone)
    gold = str(Path(online.output_dir) / "reward")
    run(changed(alone, "rounds", n=1, label="model", label_model=gold))
    assert results(online, "label-1")["accuracy"]["mean"] == 1.0
    run(changed(alone, "rounds", n=1, label="-1 * model", label_model=gold))
    assert results(online, "label-1")["accuracy"]["mean"] == 0.0


def ranked(record: dict, ranks: list) -> dict:
    return record | {"ranks": ranks}


def test_people_rank(online: Recipe) -> None:
    asked = changed(online, "rounds", n=1, label="people").model_copy(update={"stages": ("sft", "reward", "ppo")})
    for _ in range(2):
        with pytest.raises(
            Interrupted, match=r"wait for people in .*to_rank-1-\w+\.jsonl: write into each record's ranks 1"
        ):
            run(asked)
    (file,) = Path(online.output_dir).glob("to_rank-1-*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(rank is None for record in records for rank in record["ranks"])
    whole = [ranked(record, [min(i, 2) for i in range(1, 1 + len(record["completions"]))]) for record in records]
    for wrong in (
        ranked(whole[1], [1]),
        ranked(whole[1], []),
        ranked(whole[1], 1),
        ranked(whole[1], [1, "2"]),
        records[1],
    ):
        write_jsonl(file, [whole[0], wrong, *whole[2:]])
        with pytest.raises(
            DataError, match=rf"1 of {len(records)} records are not ranked \(line 2\): expected ranks with"
        ):
            run(asked)
    write_jsonl(file, [ranked(record, 1) for record in records])
    with pytest.raises(DataError, match=rf"{len(records)} of {len(records)} records are not ranked"):
        run(asked)
    write_jsonl(file, whole)
    assert {name for name, state in states(run(asked)).items() if state == "ran"} == {"label-1", "reward-1", "ppo-1"}
    found = read_rankings(Path(online.output_dir) / "label-1" / "rankings.jsonl").records
    assert [r.ranks for r in found] == [tuple(record["ranks"]) for record in whole]
    assert {r.source for r in found} == {"people"}
    assert set(states(run(asked)).values()) == {"unchanged"}


@pytest.mark.proof
def test_what_people_ranked_outlives_a_change(online: Recipe) -> None:
    asked = changed(online, "rounds", n=1, label="people").model_copy(update={"stages": ("sft", "reward", "ppo")})
    with pytest.raises(Interrupted):
        run(asked)
    (file,) = Path(online.output_dir).glob("to_rank-1-*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    whole = [ranked(record, list(range(1, 1 + len(record["completions"])))) for record in records]
    write_jsonl(file, whole)
    run(asked)

    corrected = [ranked(whole[0], whole[0]["ranks"][::-1]), *whole[1:]]
    write_jsonl(file, corrected)
    summary = states(run(asked))
    assert {name for name, state in summary.items() if state == "ran"} == {"label-1", "reward-1", "ppo-1"}

    other = changed(asked, "ppo", temperature=0.5)  # another policy, whose answers nobody has ranked
    with pytest.raises(Interrupted):
        run(other)
    assert len(list(Path(online.output_dir).glob("to_rank-1-*.jsonl"))) == 2
    assert file.read_text() == "".join(json.dumps(record) + "\n" for record in corrected)
    run(asked)
    found = read_rankings(Path(online.output_dir) / "label-1" / "rankings.jsonl").records
    assert [r.ranks for r in found] == [tuple(record["ranks"]) for record in corrected]


def test_no_round_asks_what_is_held_out(online: Recipe, tmp_path: Path) -> None:
    held_out = {r.prompt.messages for r in split_rankings(online).held_out}
    ranked = read_rankings(online.reward.train_file).records
    prompts = [{"prompt": r.prompt.text, "check": {"kind": "length", "any": ["e"], "max_words": 2}} for r in ranked]
    file = write_jsonl(tmp_path / "both.jsonl", list({p["prompt"]: p for p in prompts}.values()))
    asked = changed(changed(online, "ppo", train_file=str(file)), "rounds", n=1, prompts=100)
    run(asked.model_copy(update={"stages": ("sft", "reward", "ppo")}))
    labelled = read_rankings(Path(online.output_dir) / "label-1" / "rankings.jsonl").records
    assert labelled and held_out and not held_out & {r.prompt.messages for r in labelled}
    before, behind = (results(online, stage) for stage in ("reward", "reward-1"))
    assert behind["train_rankings"] == before["train_rankings"] + len(labelled)
    assert behind["train_prompts"] == before["train_prompts"], "ranked before, ranked again: one prompt"


def test_no_round_asks_what_begins_like_something_held_out(online: Recipe, tmp_path: Path) -> None:
    held_out = split_rankings(online).held_out
    talk = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": held_out[0].prompt.text},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "the end"},
    ]
    check = {"kind": "length", "any": ["e"], "max_words": 2}
    file = write_jsonl(tmp_path / "talk.jsonl", [{"prompt": p, "check": check} for p in (talk, "hello there")])
    place = Workplace(changed(online, "ppo", train_file=str(file)), Run(tmp_path / "r"), SilentProgress())
    assert [prompt.text for prompt in rounds.askable(place)] == ["hello there"]


def test_what_people_ranked_is_passed_over_once_it_is_held_out(
    online: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workplace(changed(online, "rounds", n=1, label="people"), Run(tmp_path / "r"), SilentProgress())
    prompts = place.prompts.records[:3]
    rows = [{"id": p.id, "prompt": p.text, "completions": ["a", "b"], "ranks": [1, 2]} for p in prompts]
    file = write_jsonl(tmp_path / "ranked.jsonl", rows)
    monkeypatch.setattr(rounds, "to_rank", lambda place: file)
    assert rounds.ranked_by_people(place) == rows
    monkeypatch.setattr(rounds, "askable", lambda place: [prompts[0], prompts[2]])
    assert rounds.ranked_by_people(place) == [rows[0], rows[2]]


def test_answers_that_are_all_alike_teach_nothing(online: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def same(completions):\n    return [1.0 for _ in completions]\n")
    asked = changed(online, "rounds", n=1, label=f"{tmp_path / 'mine.py'}:same")
    with pytest.raises(ConfigError, match=r"rounds\.label names Python code.*mine\.py:same.*--allow_code"):
        run(asked)
    with pytest.raises(DataError, match="none has answers of different ranks"):
        pipeline.run(asked, ["whelp"], False, SilentProgress(), allow_code=True)


def test_a_label_model_that_is_not_there_is_missed_before_anything_is_spent(online: Recipe) -> None:
    with pytest.raises(ModelError, match="no model 'gone'"):
        run(changed(online, "rounds", label="model", label_model="gone"))
    assert not (Path(online.output_dir) / "sft").exists()
