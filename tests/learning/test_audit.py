"""The audit through the whole pipeline: of a run, of any classifier, with probes and cases of one's own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import changed, run, write_jsonl
from test_stages_alone import only
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from whelp import pipeline
from whelp.cli import app
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError
from whelp.progress import PlainProgress
from whelp.report import write_report
from whelp.runs.files import read_json
from whelp.stages.audit.probes import PROBES

PROBE = '''
from whelp.audit import Case, probe

@probe("shouting", doses=(1, 3))
def marks(case: Case, dose: int, draw) -> str:
    """Exclamation marks."""
    return case.answer + "!" * dose
'''


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"c{i}", "category": "known" if i % 2 else "opinion", "prompt": f"tell me of {i}", "answer": f"it is {i}. yes.",
            "paraphrase": f"yes. {i} it is.", "wrong": f"it is not {i}. no.", "claim": f"it is not {i}.",
            "agrees": f"no, it is not {i}.", "other_language": f"es {i}.", "topic_words": ["it", "yes"],
        }
        for i in range(8)
    ]  # fmt: skip
    write_jsonl(tmp_path / "cases.jsonl", rows)
    return tmp_path / "cases.jsonl"


@pytest.fixture
def audited(recipe: Recipe, cases: Path) -> Recipe:
    return changed(recipe, "audit", cases=str(cases), max_cases=6)


def result_of(recipe: Recipe) -> dict[str, Any]:
    return read_json(Path(recipe.output_dir) / "audit" / "metrics.json")


def test_a_run_audits_its_reward_model_and_its_policy(audited: Recipe) -> None:
    summary = run(only(audited, "sft", "reward", "ppo", "evaluate", "audit", "report"))
    found = result_of(audited)
    assert [one["name"] for one in found["reward_model"]["probes"]] == [one.name for one in PROBES]
    assert found["reward_model"]["cases"] == 6
    assert found["policy"]["prompts"] == 9, "the greedy answers to the evaluation's prompts"
    assert {one["name"] for one in found["policy"]["measures"]} >= {"length, tokens", "flatters", "passes its check"}
    assert found["policy"]["changes"]["objective/kl"]["first"] == pytest.approx(0.0, abs=1e-5)
    assert found["verdict"].startswith(("The reward model pays for", "No probe found"))
    assert summary.report is not None
    page = summary.report.read_text()
    assert "Audit: does cheating pay?" in page and "restating" in page and "What the policy does" in page
    again = run(only(audited, "sft", "reward", "ppo", "evaluate", "audit"))
    assert {cost.state for cost in again.costs} == {"unchanged"}


def test_the_reward_of_the_policys_answers_is_the_reward_models(audited: Recipe) -> None:
    """By transformers, from the exported folder."""
    run(only(audited, "sft", "reward", "ppo", "evaluate", "audit"))
    folder = Path(audited.output_dir)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    rows = [json.loads(line) for line in (folder / "evaluate" / "completions.jsonl").read_text().splitlines()]
    scores: dict[str, list[float]] = {"sft": [], "rlhf": []}
    for row in rows:
        if row["mode"] == "greedy" and row["model"] in scores:
            said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            tokens = tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                scores[row["model"]].append(float(model(**tokens).logits[0, 0]))
    gain = sum(after - before for before, after in zip(*scores.values(), strict=True)) / len(scores["sft"])
    assert result_of(audited)["policy"]["reward"]["gain"]["mean"] == pytest.approx(gain, abs=1e-3)


@pytest.mark.proof
def test_the_command_audits_a_run_by_its_own_recipe(audited: Recipe, cases: Path) -> None:
    run(only(audited, "sft", "reward", "ppo", "evaluate"))
    asked = ["audit", "--output_dir", audited.output_dir, "--cases", str(cases), "audit.max_cases=4"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "What the policy does, on 9 prompts" in done.output and "on 4 cases" in done.output
    kept = read_json(Path(audited.output_dir) / "manifest.json")["recipe"]
    assert kept["evaluate"]["prompts"] == audited.evaluate.prompts and kept["model"] == audited.model


def test_any_classifier_is_audited_by_the_command(
    audited: Recipe, tiny_model_folder, cases: Path, tmp_path: Path
) -> None:
    source, other = tiny_model_folder("llama"), tmp_path / "classifier"
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, pad_token_id=3).save_pretrained(other)
    AutoTokenizer.from_pretrained(source).save_pretrained(other)
    mine = tmp_path / "mine.py"
    mine.write_text(PROBE)
    asked = ["audit", "--reward_model", str(other), "--cases", str(cases), "--output_dir", str(tmp_path / "out")]
    plain = CliRunner().invoke(app, [*asked, f"model={source}"])
    assert plain.exit_code == 0, plain.output
    assert "What the reward model pays for, on 8 cases" in plain.output
    assert "marks" not in plain.output and "What the policy does" not in plain.output
    refused = CliRunner().invoke(app, [*asked, f"model={source}", "--probes", str(mine)])
    assert refused.exit_code != 0
    allowed = CliRunner().invoke(app, [*asked, f"model={source}", "--probes", str(mine), "--allow_code"])
    assert allowed.exit_code == 0, allowed.output
    assert "marks" in allowed.output and "shouting" in allowed.output


def test_what_cannot_be_audited_is_said_before_anything_runs(audited: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit needs a reward model"):
        run(only(audited, "audit"))
    run(only(audited, "reward"))
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    asked = changed(only(audited, "audit"), "audit", probes=(str(empty),))
    with pytest.raises(DataError, match="has no probe"):
        pipeline.run(asked, [], False, PlainProgress(io.StringIO()), allow_code=True)
    broken = tmp_path / "broken.py"
    broken.write_text("x = \n")
    asked = changed(only(audited, "audit"), "audit", probes=(str(broken),))
    with pytest.raises(DataError, match=r"broken.py cannot be run: SyntaxError"):
        pipeline.run(asked, [], False, PlainProgress(io.StringIO()), allow_code=True)


def test_a_bad_case_is_named_by_its_line(audited: Recipe, tmp_path: Path) -> None:
    run(only(audited, "reward"))
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a"}, {"prompt": "c", "answer": "d", "topic_words": "none"}]
    write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as found:
        run(changed(only(audited, "audit"), "audit", cases=str(tmp_path / "bad.jsonl")))
    said = str(found.value)
    assert "bad.jsonl:2: lacks answer" in said and "bad.jsonl:3: has the topic_words" in said


def test_the_report_of_a_run_without_an_audit_says_nothing_of_one(recipe: Recipe) -> None:
    run(only(recipe, "reward"))
    assert "Audit: does cheating pay?" not in write_report(Path(recipe.output_dir)).read_text()
