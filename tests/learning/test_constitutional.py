"""Constitutional AI on tiny models: from base to report, and a judge that knows nothing is refused."""

from __future__ import annotations

import html
import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pipeline_helpers import WORDS, changed, run, states, write_jsonl

from whelp import pipeline
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError, TrainingError
from whelp.text.formats import read_demonstrations, read_rankings

STAGES = ("sft", "revise", "feedback", "reward", "ppo", "evaluate", "report")


def principle(id: str) -> str:
    asked = {
        "principle": f"{id} fine.",
        "critique": f"{id}: why?",
        "revision": f"{id}: again",
        "comparison": f"{id}: A or B?",
    }
    return f"- id: {id}\n  value: harmless\n" + "".join(f'  {key}: "{value}"\n' for key, value in asked.items())


@pytest.fixture
def constitutional(recipe: Recipe, tiny_model_folder, data: Path, tmp_path: Path) -> Recipe:
    red_team = [{"prompt": f"hurt {w} {i}", "category": "harm-x"} for i in range(2) for w in WORDS]
    demos = [json.loads(line) for line in (data / "demos.jsonl").read_text().splitlines()]
    demos += [{"prompt": f"harm {w}", "completion": f"no {w}", "category": "harm-y"} for w in WORDS[:4]]
    constitution = {
        "train_file": str(write_jsonl(tmp_path / "red.jsonl", red_team)), "max_new_tokens": 40, "num_generations": 3,
        "principles": str(tmp_path / "mine.yaml"), "temperature": 1.0,
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(principle("kind") + principle("calm"))
    learns = {"num_train_epochs": 20, "learning_rate": 3e-3}  # until its answers end by themselves
    recipe = changed(recipe, "sft", train_file=str(write_jsonl(tmp_path / "mixed.jsonl", demos)), **learns)
    recipe = changed(changed(recipe, "constitution", **constitution), "ppo", total_episodes=16)
    model = str(tiny_model_folder("llama", max_position_embeddings=2048))
    return recipe.model_copy(update={"stages": STAGES, "model": model})


def results(recipe: Recipe, stage: str) -> dict:
    return json.loads((Path(recipe.output_dir) / stage / "metrics.json").read_text())


def test_from_base_to_report(constitutional: Recipe) -> None:
    folder = Path(constitutional.output_dir)
    summary = run(constitutional)
    assert [cost.stage for cost in summary.costs] == [
        "sft", "labeller", "revise", "sft-revised", "feedback", "reward", "judge", "ppo", "evaluate",
    ]  # fmt: skip
    revised = results(constitutional, "revise")
    kept = read_demonstrations(folder / "revise" / "demonstrations.jsonl").records
    assert sum(revised["fates"].values()) == 18
    assert len(kept) == revised["fates"]["kept"] > 0
    helpful = results(constitutional, "sft")["sequences"]
    assert results(constitutional, "sft-revised")["sequences"] == helpful + len(kept)
    learned = json.loads((folder / "training_prompts.json").read_text())
    assert len(learned["revise"]) == 18, "the evaluation may not ask what was revised"

    judged = results(constitutional, "feedback")
    assert judged["trusted"], judged["verdict"]
    assert judged["position_bias"]["mean"] == pytest.approx(0, abs=1e-6), "a score has no place"
    labels = read_rankings(folder / "feedback" / "rankings.jsonl").records
    assert {r.source for r in labels} == {"ai"}
    assert len(labels) == judged["labels"]
    assert all(0.5 <= r.probability <= 1 for r in labels)
    alone, both = (results(constitutional, name)["train_rankings"] for name in ("labeller", "reward"))
    assert both == alone + len(labels)

    read = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert read["revise"]["model"]["path"] == str(folder / "sft")
    for stage, name in (("feedback", "policy"), ("reward", "model"), ("ppo", "model"), ("evaluate", "sft")):
        assert read[stage][name]["path"] == str(folder / "sft-revised"), stage
    assert read["evaluate"]["helpful"]["path"] == str(folder / "sft")
    page = (folder / "report.html").read_text()
    for words in ("Constitutional AI", "Trusted labels.", judged["judge"], "What became of 18 revisions"):
        assert words in html.unescape(page), words
    assert "not to be trusted" not in page
    assert set(states(run(constitutional)).values()) == {"unchanged"}

    again = states(run(changed(constitutional, "constitution", principles_per_label=2)))
    assert {name for name, state in again.items() if state == "ran"} == {"feedback", "reward", "ppo", "evaluate"}
    alone = changed(constitutional, "constitution", principles_per_label=2, human="none")
    assert {name for name, state in states(run(alone)).items() if state == "ran"} == {"reward", "ppo", "evaluate"}
    assert results(alone, "reward")["train_rankings"] == results(alone, "feedback")["labels"]


@pytest.mark.proof
def test_a_judge_that_knows_nothing_is_refused(constitutional: Recipe) -> None:
    """A random model that is asked A or B."""
    folder = Path(constitutional.output_dir)
    asked = changed(constitutional, "constitution", judge="choice", filter=False)
    with pytest.raises(TrainingError, match=r"UNTRUSTED: .*choice agrees with people on .*--allow_untrusted_labels"):
        run(asked)
    measured = json.loads((folder / "feedback" / "trust.json").read_text())
    assert measured["trusted"] is False
    assert not (folder / "feedback" / "rankings.jsonl").exists()
    summary = run(changed(asked, "constitution", allow_untrusted_labels=True))
    assert "labeller" not in states(summary)
    page = (folder / "report.html").read_text()
    warned = page.index("The reward model learned from labels that are not to be trusted.")
    assert warned < page.index("<main>"), "in its first lines"
    assert "Labels that are not trusted." in page
    assert states(summary)["sft-revised"] == "unchanged"


def test_nothing_to_learn_is_said(constitutional: Recipe) -> None:
    """Answers of one token are cut off, or empty."""
    with pytest.raises(DataError, match=r"none of 18 revisions can be learned from \(.*\d+ cut off\)"):
        run(changed(constitutional, "constitution", max_new_tokens=1, filter=False))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clamp": (0.6, 0.4)}, "expected the lower end first"),
        ({"values": ()}, "expected some of helpful"),
        ({"judge": "endpoint"}, "expected the model's name there"),
        ({"judge_model": "x"}, "which is the run's own"),
        ({"thinking": True}, "which writes nothing"),
    ],
)
def test_a_constitution_that_cannot_be(values: dict, message: str, constitutional: Recipe) -> None:
    from whelp.recipe_checks import mistakes

    found = [mistake.text for mistake in mistakes(changed(constitutional, "constitution", **values))]
    assert any(message in text for text in found), found


@pytest.mark.proof
def test_the_stages_alone(constitutional: Recipe) -> None:
    """`whelp sft`, `whelp constitution revise`, `feedback`, `whelp reward` into one folder, as one recipe does."""
    parts = [("sft",), ("revise",), ("feedback",), ("reward",)]
    ran = []
    base = changed(constitutional, "evaluate", judge=False)
    for stages in parts:
        ran += [cost.stage for cost in run(base.model_copy(update={"stages": stages})).costs if cost.state == "ran"]
    assert ran == ["sft", "labeller", "revise", "sft-revised", "feedback", "reward"]
    assert results(base, "reward")["train_rankings"] > results(base, "labeller")["train_rankings"]


def test_a_plan_knows_every_stage(constitutional: Recipe) -> None:
    from whelp.progress import SilentProgress

    rows = pipeline.plan(constitutional, SilentProgress()).rows
    assert [row[0] for row in rows[:5]] == ["sft", "labeller", "revise", "sft-revised", "feedback"]
    assert all(row[2] >= 0 for row in rows)


def test_a_constitution_without_the_value_is_refused(constitutional: Recipe) -> None:
    with pytest.raises((ConfigError, DataError), match="has no principle of the value honest"):
        run(changed(constitutional, "constitution", values=("honest",)))


class LikesYes(http.server.BaseHTTPRequestHandler):
    """A model behind an address that prefers whoever says yes, by its log-probabilities of A and B."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        self.asked.append(question)
        first, second = ("yes" in part for part in question.split("(A) ")[1].split("A or B?")[0].split("(B) "))
        odds = 2.0 * (first - second)
        top = [
            {"token": letter, "logprob": -math.log1p(math.exp(-o)), "bytes": None}
            for letter, o in (("A", odds), ("B", -odds))
        ]
        message = {"role": "assistant", "content": "A" if odds > 0 else "B"}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "stop",
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        said = {
            "id": "x",
            "object": "chat.completion",
            "choices": [choice],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1},
        }
        content = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LikesYes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    LikesYes.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.proof
def test_a_judge_behind_an_address_costs_nothing_again(
    constitutional: Recipe, address: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("WHELP_DATABASE", str(tmp_path / "judgements.db"))
    asked = {"judge": "endpoint", "judge_model": "m", "endpoint": address, "filter": False, "trust_pairs": 40}
    asked |= {"price_in": 1000.0, "price_out": 0.0, "max_cost": 100.0}
    recipe = changed(constitutional, "constitution", **asked).model_copy(update={"stages": ("sft", "feedback")})
    run(recipe)
    first, labels = results(recipe, "feedback"), (Path(recipe.output_dir) / "feedback" / "rankings.jsonl").read_bytes()
    assert first["trusted"], first["verdict"]
    assert first["judge"] == f"m at {address[7:-3]}, choice"
    count = len(LikesYes.asked)
    assert count >= 2 * 40
    assert first["cost"] == pytest.approx(0.01 * 2 * first["labels"])
    again = recipe.model_copy(update={"output_dir": str(tmp_path / "again")})
    run(again)
    assert len(LikesYes.asked) == count, "what was said before is not asked again"
    assert (tmp_path / "again" / "feedback" / "rankings.jsonl").read_bytes() == labels


def test_a_judge_that_cannot_be_asked_is_found_before_anything_is_spent(
    constitutional: Recipe, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("WHELP_DATABASE", str(tmp_path / "judgements.db"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        run(changed(constitutional, "constitution", judge="endpoint", judge_model="gpt-4o-mini"))
    assert not Path(constitutional.output_dir).exists()
