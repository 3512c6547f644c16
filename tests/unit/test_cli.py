"""The command line: what a command means, how it ends, and what it does not load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import whelp
from whelp.cli import app
from whelp.cli.base import name_models, resume_command
from whelp.cli.doctor import available_memory_mb
from whelp.config import Recipe
from whelp.errors import ConfigError, Interrupted, RunError, TrainingError
from whelp.recipes import load_recipe

COMMANDS = [
    "run",
    "sft",
    "reward",
    "ppo",
    "evaluate",
    "report",
    "sample",
    "chat",
    "serve",
    "validate",
    "doctor",
    "init",
    "explain",
]


@dataclass
class Cost:
    stage: str
    seconds: float
    peak_memory_mb: float
    state: str


@dataclass
class Rate:
    mean: float | None
    n: int | None


@dataclass
class Answer:
    model: str
    text: str
    rate: Rate


@dataclass
class Row:
    prompt: str
    behaviour: str
    answers: tuple[Answer, ...]


@dataclass
class Summary:
    path: Path = Path("runs/x")
    table: list[Row] = field(default_factory=list)
    report: Path | None = None
    costs: list[Cost] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    rows: list[tuple[str, str, float, float, float, str]]
    notes: list[str]


class FakePipeline(ModuleType):
    """Stands where whelp.pipeline would: remembers its calls and gives what the test put there."""

    StageCost = Cost

    def __init__(self) -> None:
        super().__init__("whelp.pipeline")
        self.calls: list[tuple[str, Any]] = []
        self.result = Summary()
        self.error: BaseException | None = None

    def _called(self, what: str, **given: Any) -> Any:
        self.calls.append((what, given))
        if self.error is not None:
            raise self.error
        return self.result

    def run(self, recipe, argv, resume, progress, allow_code):
        return self._called("run", recipe=recipe, argv=argv, resume=resume, allow_code=allow_code)

    def evaluate_models(self, recipe, models, argv, resume, progress):
        return self._called("evaluate_models", recipe=recipe, models=models, argv=argv, resume=resume)

    def plan(self, recipe, progress, allow_code=False):
        self._called("plan", recipe=recipe)
        return Plan(
            [("sft", "600 demonstrations", 3.0, 1500, 300, "new"), ("ppo", "x", 9.5, 2000, 400, "new")], ["a note"]
        )

    def report(self, run_dir):
        self._called("report", run_dir=run_dir)
        return run_dir / "report.html"

    def summary(self, path, report, costs=()):
        return Summary(path, report=report, costs=list(costs))

    def sample(self, model, prompts, **options):
        self._called("sample", model=model, prompts=prompts, **options)
        return ((prompt, f"answer {i}") for prompt in prompts for i in range(options["n"]))


@pytest.fixture
def pipeline(monkeypatch, tmp_path) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setitem(sys.modules, "whelp.pipeline", fake)
    monkeypatch.setattr(whelp, "pipeline", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def loud_chat(monkeypatch) -> None:
    """Stands where whelp.conversation would: what is said comes back louder, in pieces."""
    module = ModuleType("whelp.conversation")

    class ChatSession:
        def __init__(self, model, params, system_prompt):
            assert (model, params.temperature, system_prompt) == ("m", 0.7, None)

        def reply(self, text):
            yield from (text[:2].upper(), text[2:].upper())

    class SideBySide:
        def __init__(self, models, params, system_prompt):
            self.sessions = models

        def reply(self, text):
            yield from ((name, f"{name} {part}") for part in (text.upper(), "\x1b[2J!") for name in self.sessions)

    module.ChatSession, module.SideBySide = ChatSession, SideBySide
    monkeypatch.setitem(sys.modules, "whelp.conversation", module)


def call(*arguments: str, code: int = 0, input: str | None = None):
    result = CliRunner().invoke(app, list(arguments), input=input, prog_name="whelp")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def data(file: str, *records: dict[str, Any]) -> str:
    Path(file).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def pair(prompt: str = "Hi?") -> dict[str, str]:
    return {"prompt": prompt, "chosen": "Hello.", "rejected": "No."}


class TestHelp:
    def test_every_command_is_listed_and_teaches_by_example(self):
        listed = call("--help").output
        for command in COMMANDS:
            assert command in listed
            if command != "doctor":
                assert f"whelp {command}" in call(command, "--help").output

    def test_a_stage_s_help_lists_its_settings(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        shown = call("ppo", "-h").output
        assert "kl_horizon" in shown
        assert "10000" in shown
        assert "strength of the leash: price of a nat of KL to the SFT model" in shown
        assert "weight_decay" not in shown

    def test_version(self):
        assert call("--version").output.strip() == f"whelp {whelp.__version__}"

    def test_help_loads_neither_torch_nor_the_recipe(self):
        code = (
            "import sys, whelp.cli\n"
            "sys.argv = ['whelp', '--help']\n"
            "try: whelp.cli.main()\n"
            "except SystemExit as end: assert not end.code\n"
            "heavy = {'torch', 'transformers', 'numpy', 'ruamel', 'matplotlib', 'whelp.config', 'whelp.pipeline'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        )
        source = Path(whelp.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(source)}, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "doctor" in done.stdout

    def test_python_m_whelp(self, pipeline):
        source = Path(whelp.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-m", "whelp", "validate", "seed=-1"],
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "error: override 'seed=-1': key 'seed': given -1; expected a whole number of at least 0\n"
        )


class TestRun:
    def test_without_anything_it_is_the_default(self, pipeline):
        call("run")
        assert pipeline.calls == [
            ("run", {"recipe": Recipe(), "argv": ["whelp", "run"], "resume": False, "allow_code": False})
        ]

    def test_recipe_overrides_and_options(self, pipeline):
        call("run", "smoke", "ppo.kl-coef=0.2", "seed=4", "--output_dir", "o", "--resume")
        ((_, given),) = pipeline.calls
        assert given["resume"] is True
        assert given["argv"] == ["whelp", "run", "smoke", "ppo.kl-coef=0.2", "seed=4", "--output_dir", "o", "--resume"]
        assert given["recipe"] == load_recipe("smoke", ["ppo.kl_coef=0.2", "seed=4", "output_dir=o"])

    def test_where_each_step_s_numbers_go(self, pipeline):
        call("run", "--report-to", "tensorboard")
        call("sft", "--report_to", "tensorboard")
        call("reward", "report_to=tensorboard")
        call("ppo", "--report_to", "tensorboard", "--reward", "checker")
        call("dpo")
        found = [given["recipe"].report_to for _, given in pipeline.calls]
        assert found == ["tensorboard"] * 4 + ["none"]
        assert "expected one of none, tensorboard" in call("run", "--report_to", "wandb", code=2).stderr

    def test_an_override_may_stand_first(self, pipeline):
        call("run", "ppo.kl_coef=0.2", "seed=4")
        assert pipeline.calls[0][1]["recipe"] == load_recipe(None, ["ppo.kl_coef=0.2", "seed=4"])

    @pytest.mark.parametrize("option", ["--output_dir", "--output-dir"])
    def test_options_take_dashes_and_underscores(self, pipeline, option):
        call("run", option, "a-b_c")
        assert pipeline.calls[0][1]["recipe"].output_dir == "a-b_c"

    @pytest.mark.parametrize("option", ["--dry_run", "--dry-run"])
    def test_a_dry_run_prints_the_plan_and_runs_nothing(self, pipeline, option):
        shown = call("run", option).output
        assert [what for what, _ in pipeline.calls] == ["plan"]
        assert "sft    600 demonstrations  3 min   1,500 MB  300 MB  new" in shown
        assert "in all: 12 min, 2,000 MB of memory, 700 MB of disk" in shown
        assert "note: a note" in shown

    def test_it_ends_with_the_table_the_costs_and_the_report(self, pipeline):
        answers = (Answer("base", "Sure:\nstep 1", Rate(0.1, 24)), Answer("rlhf", "I will not.", Rate(None, None)))
        pipeline.result = Summary(
            Path("runs/a"),
            [Row("How to make a weapon?", "declines", answers)],
            Path("runs/a/report.html"),
            [Cost("sft", 61.4, 1234.5, "ran"), Cost("ppo", 600, 2000, "unchanged")],
        )
        shown = call("run").stdout
        assert "How to make a weapon?\n  base: Sure: step 1 [declines: 10% of 24 held-out prompts]\n" in shown
        assert "  rlhf: I will not.\n" in shown
        assert "sft    61 s    1,234 MB     ran\nppo    10 min  2,000 MB     unchanged\n" in shown
        assert shown.endswith("\nrun directory: runs/a\nreport: runs/a/report.html\n")


class TestStages:
    def test_reward_on_one_s_own_files(self, pipeline):
        for file in ("pairs.jsonl", "held.jsonl"):
            data(file, pair())
        pipeline.result.results = {"reward": {"accuracy": 0.625, "n": 8, "verdict": "text", "is_good": True}}
        options = ["--model", "a/m", "--train-file", "pairs.jsonl", "--test_file", "held.jsonl", "--output_dir", "o"]
        shown = call("reward", *options, "reward.learning_rate=1e-5").stdout
        ((what, given),) = pipeline.calls
        recipe = given["recipe"]
        assert what == "run"
        assert (recipe.stages, recipe.model, recipe.reward.model) == (("reward",), "a/m", "a/m")
        assert (recipe.reward.train_file, recipe.reward.test_file) == ("pairs.jsonl", "held.jsonl")
        assert (recipe.output_dir, recipe.reward.learning_rate) == ("o", 1e-5)
        assert "accuracy  0.625\nn         8\n" in shown
        assert "is_good" not in shown

    def test_sft_writes_to_out_unless_told_otherwise(self, pipeline):
        call("sft")
        call("sft", "smoke")
        call("sft", "output_dir=p")
        assert [given["recipe"].output_dir for _, given in pipeline.calls] == ["out", "runs/smoke", "p"]
        assert {given["recipe"].stages for _, given in pipeline.calls} == {("sft",)}

    def test_ppo(self, pipeline):
        call("ppo", "--reward_model", "r/m", "--total-episodes", "128", "--kl_coef", "0.5", "--resume")
        ((_, given),) = pipeline.calls
        ppo = given["recipe"].ppo
        assert (ppo.reward_model, ppo.total_episodes, ppo.kl_coef, given["resume"]) == ("r/m", 128, 0.5, True)
        assert given["allow_code"] is False
        call("ppo", "--reward", "checker", "--allow_code")
        assert pipeline.calls[-1][1]["allow_code"] is True
        assert "out/reward does not exist" in call("ppo", code=2).stderr

    def test_evaluate(self, pipeline):
        data("p.jsonl", {"prompt": "Hi?"})
        call("evaluate", "--model", "out/ppo", "--model", "first=out/sft", "--prompts", "p.jsonl", "--judge", "j")
        ((what, given),) = pipeline.calls
        assert (what, given["recipe"].evaluate.judges) == ("evaluate_models", ("j",))
        assert given["models"] == {"ppo": "out/ppo", "first": "out/sft"}
        assert given["recipe"].evaluate.prompts == "p.jsonl"
        assert given["resume"] is False
        call("evaluate", "--model", "out/ppo", "--resume")
        assert pipeline.calls[-1][1]["resume"] is True
        judges = ["openai:gpt-4o", "http://127.0.0.1:1/v1#a: b", "db:mine, too"]
        call("evaluate", "--model", "out/ppo", *(part for one in judges for part in ("--judge", one)))
        assert pipeline.calls[-1][1]["recipe"].evaluate.judges == tuple(judges)

    def test_models_get_names_that_tell_them_apart(self):
        assert name_models(["a/ppo", "b/ppo/", "org/m", "s"]) == {
            "a-ppo": "a/ppo",
            "b-ppo": "b/ppo/",
            "m": "org/m",
            "s": "s",
        }
        with pytest.raises(ConfigError, match="two models are called 'm'"):
            name_models(["m", "m=other"])
        behind = ["openai:gpt-4o", "http://127.0.0.1:8000/v1#org/tiny", "mine=https://a.example/v1#x"]
        assert list(name_models(behind)) == ["gpt-4o", "tiny", "mine"]
        with pytest.raises(ConfigError, match="names no model; expected openai:MODEL"):
            name_models(["http://127.0.0.1:8000/v1"])


class TestLooking:
    def test_report_prints_what_each_stage_cost_in_their_order(self, pipeline):
        for i, stage in enumerate(("sft", "ppo")):
            file = Path("runs/assistant", stage, "DONE.json")
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"cost": {"seconds": 30.0, "peak_memory_mb": 100.0}}))
            os.utime(file, (i, i))
        shown = call("report").stdout
        assert "sft    30 s  100 MB       done\nppo    30 s  100 MB       done\n" in shown
        assert "report: runs/assistant/report.html" in shown
        assert "there is no run directory nowhere" in call("report", "nowhere", code=1).stderr
        Path("other").mkdir()
        assert "other holds no run" in call("report", "other", code=1).stderr

    def test_sample(self, pipeline):
        shown = call("sample", "a?", "b?", "--model", "m", "--n", "2", "--temperature", "0", "--seed", "3").stdout
        assert shown == "".join(f"> {p}\nanswer {i}\n\n" for p in ("a?", "b?") for i in (0, 1))
        ((_, given),) = pipeline.calls
        assert (given["model"], given["temperature"], given["seed"]) == ("m", 0.0, 3)

    def test_the_default_model_is_what_the_default_run_ended_with(self, pipeline):
        assert "train one with `whelp run`, or give --model" in call("sample", "a?", code=2).stderr
        Path("runs/assistant/ppo").mkdir(parents=True)
        call("sample", "a?")
        assert pipeline.calls[-1][1]["model"] == "runs/assistant/ppo"
        Path("runs/assistant/manifest.json").write_text('{"recipe": {"rounds": {"n": 3}}}')
        Path("runs/assistant/ppo-2").mkdir()
        call("sample", "a?")
        assert pipeline.calls[-1][1]["model"] == "runs/assistant/ppo-2", "the third is not there yet"

    @pytest.mark.parametrize("typed", ["hello\nbye\n", "hello\nbye\n\nnot read\n"])
    def test_chat_ends_at_the_end_and_at_an_empty_line(self, loud_chat, typed):
        assert call("chat", "--model", "m", input=typed).stdout == "HELLO\n\nBYE\n\n"

    def test_chat_with_several_models(self, loud_chat, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "there is no run in runs/assistant" in call("chat", "--compare", code=2).stderr
        shown = call("chat", "--compare", "--model", "first=a", "--model", "b", input="hi\n").stdout
        assert shown == "first: first HIfirst [2J!\n\nb: b HIb [2J!\n\n"
        assert "add --compare" in call("chat", "--model", "a", "--model", "b", code=2).stderr
        Path("runs/mine/sft").mkdir(parents=True)
        Path("runs/mine/manifest.json").write_text('{"recipe": {"model": "m"}}')
        assert call("chat", "--compare", "--model", "runs/mine", input="hi\n").stdout.startswith("base: base HI")
        Path("runs/mine/sft").rmdir()
        assert "there is only base" in call("chat", "--compare", "--model", "runs/mine", code=2).stderr

    def test_chat_takes_what_is_no_utf_8(self, loud_chat):
        assert call("chat", "--model", "m", input=b"caf\xe9\n").stdout == "CAF\ufffd\n\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code"), [(ConfigError("no [such] thing"), 2), (RunError("locked"), 1), (TrainingError("NaN"), 1)]
    )
    def test_are_one_clear_message_without_a_traceback(self, pipeline, error, code):
        pipeline.error = error
        result = call("run", code=code)
        assert (result.stderr, result.stdout) == (f"error: {error}\n", "")

    def test_others_keep_their_traceback(self, pipeline):
        pipeline.error = ZeroDivisionError("a defect")
        result = CliRunner().invoke(app, ["run"])
        assert result.exception is pipeline.error

    def test_ctrl_c_says_how_to_resume(self, pipeline):
        pipeline.error = KeyboardInterrupt()
        shown = call("run", "smoke", "system_prompt=be brief", code=130).stderr
        assert shown == "interrupted\nresume with: whelp run smoke 'system_prompt=be brief' --resume\n"

    def test_a_stage_that_stopped_tells_what_is_saved(self, pipeline):
        pipeline.error = Interrupted("stopped after step 3")
        shown = call("sft", "--resume", code=130).stderr
        assert shown == "interrupted: stopped after step 3\nresume with: whelp sft --resume\n"

    def test_what_cannot_resume_does_not_promise_it(self, pipeline):
        pipeline.error = KeyboardInterrupt()
        assert call("sample", "a?", "--model", "m", code=130).stderr == "interrupted\n"

    def test_resume_stands_there_once(self):
        assert resume_command(["whelp", "run", "--resume"]) == "whelp run --resume"

    @pytest.mark.parametrize(
        "arguments", [["run", "--no_such"], ["rum"], ["evaluate"], ["sample"], ["ppo", "--kl_coef", "x"]]
    )
    def test_wrong_usage(self, pipeline, arguments):
        call(*arguments, code=2)
        assert pipeline.calls == []


class TestPrepare:
    def test_validate_says_what_a_good_recipe_does(self, pipeline):
        assert call("validate").stdout.startswith(
            "ok: sft, reward, ppo, evaluate, audit, report on smollm2-135m-instruct"
        )
        assert call("validate", "smoke", "ppo.kl-coef=1").exit_code == 0

    def test_validate_names_all_mistakes(self, pipeline):
        Path("r.yaml").write_text("sed: 1\nppo:\n  kl_coeff: 1\n  gamma: 2\nmax_prompts: 3\n")
        assert call("validate", "r.yaml", code=2).stderr == (
            "error: r.yaml: 4 mistakes\n"
            "  r.yaml:1: key 'sed': unknown; did you mean seed?\n"
            "  r.yaml:3: key 'ppo.kl_coeff': unknown; did you mean kl_coef?\n"
            "  r.yaml:4: key 'ppo.gamma': given 2; expected a number from 0 to 1\n"
            "  r.yaml:5: key 'max_prompts': unknown; did you mean evaluate.max_prompts?\n"
        )
        assert "no recipe 'smokey'" in call("validate", "smokey", code=2).stderr

    def test_init_writes_a_recipe_that_loads_and_says_what_is_missing(self, pipeline):
        data("pairs.jsonl", pair("a"), pair("b"), pair("b"))
        shown = call("init", "--data", "pairs.jsonl", "--model", "org/m", "--output", "new/mine.yaml").stdout
        assert "found: pairs.jsonl: 2 rankings (prompt/chosen/rejected, 1 duplicates)" in shown
        assert "missing: demonstrations; SFT uses the built-in demonstrations" in shown
        assert "missing: prompts; PPO uses those of pairs.jsonl" in shown
        text = Path("new/mine.yaml").read_text()
        assert all(f"# {line}" in text for line in shown.splitlines() if line.startswith(("found", "missing")))
        recipe = load_recipe("new/mine.yaml")
        assert (recipe.model, recipe.output_dir) == ("org/m", "runs/mine")
        assert (recipe.reward.train_file, recipe.ppo.train_file) == ("pairs.jsonl", "pairs.jsonl")
        assert recipe.sft.train_file == "builtin:demonstrations"

    def test_init_tells_the_kinds_apart(self, pipeline):
        data("a.jsonl", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
        data("b.jsonl", {"messages": [{"role": "user", "content": "q"}]})
        data("c.jsonl", {"prompt": "q", "completions": ["x", "y"], "ranks": [1, 2]})
        call("init", "--data", "a.jsonl", "--data", "b.jsonl", "--data", "c.jsonl")
        recipe = load_recipe("recipe.yaml")
        files = (recipe.sft.train_file, recipe.ppo.train_file, recipe.reward.train_file)
        assert files == ("a.jsonl", "b.jsonl", "c.jsonl")

    def test_init_goes_by_the_keys_where_the_first_record_is_faulty(self, pipeline):
        data("pairs.jsonl", pair("a") | {"rejected": "x", "chosen": "x"}, pair("b"))
        assert "1 of 2 records cannot be used" in call("init", "--data", "pairs.jsonl", code=2).stderr

    @pytest.mark.parametrize("first", [True, False])
    def test_init_knows_labelled_answers(self, pipeline, first):
        rows = [{"prompt": "q", "completion": text, "label": label} for text, label in (("a", first), ("b", not first))]
        data("labels.jsonl", *rows)
        assert (
            "found: labels.jsonl: 1 rankings (prompt/completion/label)" in call("init", "--data", "labels.jsonl").stdout
        )

    def test_init_refuses(self, pipeline):
        data("pairs.jsonl", pair(), {"prompt": "only"})
        data("odd.jsonl", {"question": "x"})
        data("empty.jsonl")
        data("one.jsonl", pair())
        assert "pairs.jsonl:2:" in call("init", "--data", "pairs.jsonl", code=2).stderr
        assert "odd.jsonl:1: has the keys question" in call("init", "--data", "odd.jsonl", code=2).stderr
        assert "empty.jsonl: is empty" in call("init", "--data", "empty.jsonl", code=2).stderr
        assert "no such file" in call("init", "--data", "gone.jsonl", code=2).stderr
        assert "both hold rankings" in call("init", "--data", "one.jsonl", "--data", "one.jsonl", code=2).stderr
        assert not Path("recipe.yaml").exists()
        Path("recipe.yaml").write_text("mine")
        assert "recipe.yaml exists already" in call("init", "--data", "one.jsonl", code=2).stderr
        assert Path("recipe.yaml").read_text() == "mine"

    def test_doctor(self, pipeline, monkeypatch):
        monkeypatch.setenv("WHELP_CACHE", str(Path.cwd() / "cache"))
        lines = call("doctor").stdout.splitlines()
        assert all(line.startswith(("ok    ", "warn  ")) for line in lines)
        for what in (
            "python 3",
            "torch ",
            "transformers ",
            "device cpu",
            "logical cores",
            "memory: ",
            "disk: ",
            "cache: ",
        ):
            assert any(line[6:].startswith(what) or what in line for line in lines), what
        assert "warn  smollm2-135m-instruct is not cached yet" in "\n".join(lines)

    def test_memory_is_read_from_the_system(self, tmp_path):
        (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2097152 kB\n")
        assert available_memory_mb(tmp_path / "meminfo") == 2048
        assert available_memory_mb(tmp_path / "none") is None


class TestData:
    def test_the_list_counts_what_ships(self):
        shown = " ".join(call("data", "list").output.split())
        for name, records in (("demonstrations", 1574), ("constitution", 24), ("brief", 7)):
            assert re.search(rf"\b{name}\W+(?:records: )?{records}\b", shown), name

    def test_a_data_set_that_ships(self):
        shown = call("data", "show", "evaluation", "--category", "self", "--n", "2").output
        assert "builtin:evaluation: 452 records" in shown
        assert shown.count("category: self") == shown.count("\nprompt: ") == 2

    def test_a_file_of_ones_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        data("mine.jsonl", {"messages": turns}, {"prompt": "Hello", "completions": ["Hi", "No"], "ranks": [1, 2]})
        shown = call("data", "show", "mine.jsonl").output
        assert "mine.jsonl: 2 records" in shown
        assert "user: Hello\n  assistant: Hi" in shown
        assert "1. Hi\n  2. No\nranks: [1, 2]" in shown

    def test_lines_that_cannot_be_read_are_named(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("mine.jsonl").write_text('{"prompt": "Hello"}\n{"prompt"\n[1]\n')
        shown = call("data", "show", "mine.jsonl").output
        assert "mine.jsonl:2: is not valid JSON" in shown and "mine.jsonl:3: is not a JSON object" in shown

    def test_what_is_not_there(self):
        assert (
            "holds nothing of the category 'cats'" in call("data", "show", "brief", "--category", "cats", code=2).output
        )
        assert "data is read from" in call("data", "show", "nope", code=2).output
