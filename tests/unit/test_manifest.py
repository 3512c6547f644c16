"""A run's manifest and its stages: which still hold, and what changed where one does not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import names, writer

from whelp.errors import RunError
from whelp.runs import manifest as manifest_module
from whelp.runs.checkpoint import save_checkpoint
from whelp.runs.cost import Cost
from whelp.runs.files import plain, read_json, write_json_atomic
from whelp.runs.manifest import Run, differences, fingerprint, fingerprint_parts, open_run
from whelp.runs.metrics import MetricsLog

CONFIG = {"seed": 0, "ppo": {"kl_coef": 0.05, "num_ppo_epochs": 2}}
INPUTS = {"reward": "aa", "prompts": "bb"}


def parts(config: dict[str, Any] = CONFIG, inputs: dict[str, str] = INPUTS) -> dict[str, Any]:
    return fingerprint_parts("ppo", config, inputs)


def new_run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "first", CONFIG, ["whelp", "train"])


def finished(run: Run) -> None:
    run.start_stage("ppo", parts())
    run.finish_stage("ppo", fingerprint("ppo", CONFIG, INPUTS), {"objective/kl": 6.0}, asdict(Cost(1.0, 2.0)))


def test_the_manifest_tells_what_from_what_and_by_which_command(tmp_path: Path) -> None:
    run = open_run(tmp_path / "first", CONFIG, ["whelp", "train", "my recipe.yaml"])
    run.record_inputs("sft", {"demonstrations": {"path": "d.jsonl", "sha256": "aa", "rows": 3}})
    first = run.manifest()
    assert first["name"] == "first" and first["recipe"] == CONFIG
    assert first["command"] == "whelp train 'my recipe.yaml'"
    assert first["python"] == sys.version.split()[0] and first["platform"]
    assert set(first["packages"]) == {"torch", "transformers"}
    again = open_run(tmp_path / "first", {"seed": 1}, ["whelp", "resume"]).manifest()
    assert again["recipe"] == {"seed": 1} and again["command"] == "whelp resume"
    assert again["created"] == first["created"] and again["inputs"] == first["inputs"]
    assert [entry["command"] for entry in again["history"]] == ["whelp train 'my recipe.yaml'", "whelp resume"]


def test_versions_are_those_installed_and_none_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest_module._version("pytest") == pytest.__version__
    assert manifest_module._version("no-package-of-this-name") is None


def test_a_run_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "file", {}, [])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json is not valid JSON"):
        open_run(tmp_path, {}, [])


def test_training_prompts_are_the_union_of_what_the_stages_saw_last(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.training_prompts() == set()
    run.record_training_prompts("sft", iter(["c", "a", "a"]))
    run.record_training_prompts("ppo", ["z"])
    run.record_training_prompts("ppo", ["b", "a"])
    assert read_json(run.path / "training_prompts.json") == {"sft": ["a", "c"], "ppo": ["a", "b"]}
    assert run.training_prompts() == {"a", "b", "c"}


def test_a_stage_goes_from_new_to_partial_to_done(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert run.stage_state("ppo", parts()).kind == "new"
    folder = run.start_stage("ppo", parts())
    assert folder == run.stage_dir("ppo") == tmp_path / "first" / "ppo"
    assert run.stage_state("ppo", parts()).kind == "new"
    MetricsLog(folder).append(1, loss=1.0)
    assert run.stage_state("ppo", parts()).kind == "partial"
    run.start_stage("ppo", parts())
    assert len(MetricsLog.read(folder / "metrics.jsonl")) == 1, "resuming keeps what is there"
    run.finish_stage("ppo", fingerprint("ppo", CONFIG, INPUTS), {"accuracy": 0.6}, {"seconds": 2.0})
    state = run.stage_state("ppo", parts())
    assert (state.kind, state.why) == ("done", ())
    assert read_json(folder / "metrics.json") == {"accuracy": 0.6}
    done = read_json(folder / "DONE.json")
    assert done["cost"] == {"seconds": 2.0} and done["fingerprint"] == fingerprint("ppo", CONFIG, INPUTS)
    assert done["parts"]["inputs"] == INPUTS


def test_a_checkpoint_alone_makes_a_stage_partial(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    save_checkpoint(run.start_stage("ppo", parts()), 1, writer("x"), 1)
    assert run.stage_state("ppo", parts()).kind == "partial"


def test_a_kill_between_result_and_done_leaves_the_stage_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)
    MetricsLog(run.start_stage("ppo", parts())).append(1, loss=1.0)

    def killed_at_done(path: Path, obj: Any) -> None:
        if path.name == "DONE.json":
            raise KeyboardInterrupt
        write_json_atomic(path, obj)

    monkeypatch.setattr(manifest_module, "write_json_atomic", killed_at_done)
    with pytest.raises(KeyboardInterrupt):
        finished(run)
    assert (run.stage_dir("ppo") / "metrics.json").exists()
    assert run.stage_state("ppo", parts()).kind == "partial"


def test_starting_a_finished_stage_again_makes_it_unfinished(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    finished(run)
    run.start_stage("ppo", parts())
    assert run.stage_state("ppo", parts()).kind != "done"


CHANGES: list[tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = [
    ({"seed": 0, "ppo": {"kl_coef": 0.1, "num_ppo_epochs": 2}}, INPUTS, ("ppo.kl_coef 0.05 -> 0.1",)),
    (CONFIG, INPUTS | {"reward": "cc"}, ("input reward changed",)),
    (CONFIG, INPUTS | {"judge": "dd"}, ("input judge is new",)),
    (CONFIG, {"reward": "aa"}, ("input prompts is gone",)),
    ({"seed": 0, "ppo": {"kl_coef": 0.05}}, INPUTS, ("ppo.num_ppo_epochs 2 is gone",)),
    (CONFIG | {"model": "smollm"}, INPUTS, ('model is new ("smollm")',)),
    (
        {"seed": 1, "ppo": CONFIG["ppo"]},
        {"reward": "cc"},
        ("seed 0 -> 1", "input prompts is gone", "input reward changed"),
    ),
]


@pytest.mark.parametrize(("config", "inputs", "why"), CHANGES, ids=[why[0] for *_, why in CHANGES])
def test_a_changed_stage_says_what_changed(
    tmp_path: Path, config: dict[str, Any], inputs: dict[str, str], why: tuple[str, ...]
) -> None:
    run = new_run(tmp_path)
    finished(run)
    state = run.stage_state("ppo", parts(config, inputs))
    assert state.kind == "changed"
    assert sorted(state.why) == sorted(why)
    assert fingerprint("ppo", config, inputs) != fingerprint("ppo", CONFIG, INPUTS)


def test_another_version_of_whelp_is_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    finished(run)
    before = manifest_module.__version__
    monkeypatch.setattr(manifest_module, "__version__", "99.0")
    assert run.stage_state("ppo", parts()).why == (f'whelp "{before}" -> "99.0"',)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "a.b"]), inner, max_size=2),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES, max_size=2)


@given(before=CONFIGS, now=CONFIGS)
@settings(max_examples=200, deadline=None)
def test_there_is_a_difference_to_tell_exactly_when_the_fingerprints_differ(before: Any, now: Any) -> None:
    same = fingerprint("ppo", before, {}) == fingerprint("ppo", now, {})
    assert (differences(parts(before, {}), parts(now, {})) == ()) is same
    through_a_file = json.loads(json.dumps(plain(parts(before, {}), repr)))
    assert differences(through_a_file, parts(before, {})) == ()


def test_infinite_and_missing_settings_are_told_apart_after_a_trip_through_the_file(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.start_stage("ppo", parts({"ppo": {"target_kl": float("inf")}}))
    MetricsLog(run.stage_dir("ppo")).append(1)
    assert run.stage_state("ppo", parts({"ppo": {"target_kl": float("inf")}})).kind == "partial"
    assert run.stage_state("ppo", parts({"ppo": {"target_kl": None}})).why == ('ppo.target_kl "inf" -> null',)


def test_starting_with_other_parts_removes_what_the_old_ones_made(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    folder = run.start_stage("ppo", parts())
    MetricsLog(folder).append(1, loss=1.0)
    (folder / "SCRATCH").mkdir()
    (run.path / "ppo.trash-1").mkdir()
    other = parts(CONFIG | {"seed": 1})
    state = run.stage_state("ppo", other)
    assert (state.kind, state.why) == ("new", ("seed 0 -> 1",))
    run.start_stage("ppo", other)
    assert names(folder) == ["STARTED.json"]
    assert names(run.path) == ["manifest.json", "ppo"]
    assert run.stage_state("ppo", parts()).why == ("seed 1 -> 0",)


def test_what_no_stage_began_is_never_removed(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.stage_dir("ppo").mkdir()
    run.start_stage("ppo", parts())
    run.stage_dir("reward").mkdir()
    (run.stage_dir("reward") / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"holds thesis\.tex but no STARTED\.json"):
        run.start_stage("reward", parts())
    assert (run.stage_dir("reward") / "thesis.tex").read_text() == "years of work"


def test_finishing_what_was_not_started_so_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(RunError, match="fingerprint None"):
        run.finish_stage("ppo", "aa", {}, {})
    run.start_stage("ppo", parts())
    with pytest.raises(RunError, match="Run the stage again"):
        run.finish_stage("ppo", "aa", {}, {})
    assert names(run.stage_dir("ppo")) == ["STARTED.json"]
