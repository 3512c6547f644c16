"""A model handed on as a Hugging Face folder with its card, and to the hub: what it is, and what goes with it."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from engine_helpers import sequences_of
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from whelp.cli import app
from whelp.errors import ConfigError, ModelError, RunError
from whelp.export.card import cell, evaluation
from whelp.export.hf import export_hf
from whelp.export.hub import files_of, ready
from whelp.export.lineage import fingerprint_of, lineage, source_name
from whelp.models.sources import cached
from whelp.runs.files import new_folder, read_json, sha256_model, write_json_atomic
from whelp.runs.manifest import Run, fingerprint, fingerprint_parts, open_run
from whelp.text.chat import end_ids

FILES = ["README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json"]  # fmt: skip
RATE = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 40}


def stage(
    run: Run, name: str, config: dict[str, Any], inputs: dict[str, tuple[str, str]], result: dict[str, Any]
) -> str:
    """A finished stage as a run leaves it: its fingerprint. `inputs`: name -> (path, sha256)."""
    hashes = {key: sha256 for key, (_, sha256) in inputs.items()}
    run.start_stage(name, fingerprint_parts(name, config, hashes))
    run.record_inputs(name, {key: {"path": path, "sha256": sha256} for key, (path, sha256) in inputs.items()})
    run.finish_stage(name, made := fingerprint(name, config, hashes), result, {"seconds": 1.0, "peak_memory_mb": 1.0})
    return made


@pytest.fixture
def base(llama: Path, tmp_path: Path) -> Path:
    """A base model with a card of its own."""
    folder = tmp_path / "secret place" / "base"
    shutil.copytree(llama, folder)
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: MIT\n---\nlicense: of something else\n")
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Run:
    """SFT, reward model and PPO of a small model, and an evaluation of it all."""
    run = open_run(tmp_path / "secret place" / "mine", {"model": str(base)}, ["whelp", "run"])
    common = {"seed": 3, "trainable_layers": 2, "system_prompt": "Be brief | be kind."}
    data = str(tmp_path / "secret place" / "pairs.jsonl")
    Path(data).write_text("{}")
    sft = stage(run, "sft", common | {"sft": {"learning_rate": 3e-4, "weight_decay": 0.25}},
                {"model": (str(base), sha256_model(base)), "demonstrations": ("builtin:demonstrations", "d" * 64)},
                {"test_loss": 1.5})  # fmt: skip
    reward = stage(run, "reward", common | {"reward": {"members": 1}},
                   {"model": (str(run.path / "sft"), sft), "rankings": (data, "e" * 64), "split": (data, "0.2 held out")},
                   {"accuracy_interval": RATE, "n": 1234})  # fmt: skip
    config = {"reward": "model + 0.5 * /home/ann/a-b/c.py:mine", "kl_coef": 0.05, "kl_target": None}
    ppo = stage(run, "ppo", common | {"ppo": config},
                {"model": (str(run.path / "sft"), sft), "prompts": ("owner/asked", "f" * 64),
                 "reward": (str(run.path / "reward"), reward)}, {})  # fmt: skip
    rates = {name: {"greedy": RATE | {"mean": mean}} for name, mean in (("base", 0.3), ("sft", 0.5), ("rlhf", 0.7))}
    stage(run, "evaluate", {"evaluate": {}},
          {"base": (str(base), sha256_model(base)), "sft": (str(run.path / "sft"), sft), "rlhf": (str(run.path / "ppo"), ppo)},
          {"models": list(rates), "n_prompts": 40, "suites": {"harm-drugs": rates}, "overall": rates})  # fmt: skip
    for name in ("sft", "reward", "ppo"):
        for file in base.iterdir():
            shutil.copy(file, run.path / name)
    return run


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# -- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_language_model_in_the_format_that_is_wanted(family, tiny_model_folder, whole_model, tmp_path):
    source = tiny_model_folder(family)
    tokens = torch.randint(290, (2, 20), generator=torch.Generator().manual_seed(0))
    for dtype, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        export_hf(source, tmp_path / dtype, dtype)
        assert sorted(file.name for file in (tmp_path / dtype).iterdir()) == FILES
        model, original = whole_model(tmp_path / dtype, "auto"), whole_model(source, wanted)
        assert model.dtype == model.config.dtype == wanted
        with torch.no_grad():
            assert torch.equal(model(input_ids=tokens).logits, original(input_ids=tokens).logits)
        assert {tensor.dtype for tensor in load_file(tmp_path / dtype / "model.safetensors").values()} == {wanted}


def test_what_lies_beside_the_weights(llama, tiny_tokenizer, tmp_path):
    export_hf(llama, tmp_path / "out")
    tokenizer, generation = (
        AutoTokenizer.from_pretrained(tmp_path / "out"),
        GenerationConfig.from_pretrained(tmp_path / "out"),
    )
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert (generation.eos_token_id, generation.pad_token_id) == (*end_ids(tiny_tokenizer), tiny_tokenizer.pad_token_id)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reward_model_keeps_its_scores_and_its_unit(build, tmp_path):
    trained = build(head="scalar", members=2, seed=7)
    trained.export("m", tmp_path / "reward", gain=1.5, reward_shift=0.5, reward_member_shifts=[0.5, 0.25])
    export_hf(tmp_path / "reward", tmp_path / "out", "float32")
    kind = AutoModelForSequenceClassification
    before, after = (kind.from_pretrained(tmp_path / name).eval() for name in ("reward", "out"))
    for tokens in sequences_of().tokens:
        with torch.no_grad():
            scores = [model(input_ids=torch.tensor([tokens])).logits for model in (before, after)]
        assert scores[0].shape == (1, 1)
        assert torch.equal(*scores)
    assert after.config.reward_shift == 0.5
    assert "less 0.5, is the reward. It is the first member of an ensemble." in text_of(tmp_path / "out")
    assert "AutoModelForSequenceClassification" in text_of(tmp_path / "out")


def test_nothing_is_overwritten(llama, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(RunError, match=f"{name} is there already and is not empty; nothing is overwritten"):
            export_hf(llama, tmp_path / name)
    export_hf(llama, tmp_path / "empty")
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModelError("broken"), OSError(28, "No space left on device")])
def test_half_an_export_is_none(error, tmp_path):
    def export() -> None:
        with new_folder(tmp_path / "a" / "out") as folder:
            (folder / "half").write_text("x")
            assert not (tmp_path / "a" / "out").exists()
            raise error

    with pytest.raises(RunError if isinstance(error, OSError) else type(error)):
        export()
    assert list((tmp_path / "a").iterdir()) == []


def test_another_number_format(llama, tmp_path):
    with pytest.raises(ConfigError, match="dtype is int4, expected one of bfloat16, float32"):
        export_hf(llama, tmp_path / "out", "int4")


# -- the card -------------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_model_was_made_from_and_where_nothing_lay(run, base, tmp_path):
    export_hf(run.path / "ppo", tmp_path / "out")
    text, data = text_of(tmp_path / "out"), ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert "sft, then reward, then ppo" in text
    for line in (
        f"| sft | model | base | {sha256_model(base)} |",
        f"| sft | demonstrations | builtin:demonstrations | {'d' * 64} |",
        f"| reward | rankings | pairs.jsonl | {'e' * 64} |",
        "| reward | split | pairs.jsonl | 0.2 held out |",
        f"| ppo | prompts | owner/asked | {'f' * 64} |",
        f"| ppo | model | the stage sft | {fingerprint_of(run.path / 'sft')} |",
        "| sft | seed | 3 |",
        "| sft | sft.learning_rate | 0.0003 |",
        "| ppo | ppo.kl_coef | 0.05 |",
        "| ppo | ppo.reward | model + 0.5 * c.py:mine |",
    ):
        assert line in text.splitlines()
    assert "weight_decay" not in text and "kl_target" not in text
    assert text.count("| seed |") == 1
    assert "secret place" not in text and str(tmp_path) not in text
    assert r'which the template does not add by itself: "Be brief \| be kind."' in text
    assert "That of the model it began with, `base`: mit." in text


def test_a_card_shows_the_evaluation_that_looked_at_this_model(run, tmp_path):
    export_hf(run.path / "ppo", tmp_path / "out")
    lines = text_of(tmp_path / "out").splitlines()
    at = lines.index("| category | prompts | base | sft | rlhf |")
    assert lines[at : at + 5] == [
        "| category | prompts | base | sft | rlhf |",
        "|---|---|---|---|---|",
        "| harm-drugs | 40 | 30% (25% to 75%) | 50% (25% to 75%) | 70% (25% to 75%) |",
        "| all | 40 | 30% (25% to 75%) | 50% (25% to 75%) | 70% (25% to 75%) |",
        "",
    ]
    assert "this model is `rlhf`" in lines[at - 2]
    assert evaluation(run.path / "sft").model == "sft"
    assert evaluation(run.path / "reward") is None
    done = run.path / "ppo" / "DONE.json"
    write_json_atomic(done, read_json(done) | {"fingerprint": "new"})
    assert evaluation(run.path / "ppo") is None, "it was trained again behind the evaluation"


def test_a_card_says_plainly_what_is_not_known(llama, run, tmp_path):
    export_hf(llama, tmp_path / "bare", "float32")
    text = text_of(tmp_path / "bare")
    assert "Measured: nothing that whelp knows of." in text
    assert "Its run holds no evaluation of it." in text
    assert "No run of whelp made this model" in text
    assert "whelp does not know it: look it up there" in text
    assert "This is a small model." in text
    assert "are changed" not in text and "were changed" not in text
    assert ModelCard.load(tmp_path / "bare" / "README.md").data.license is None
    export_hf(run.path / "ppo", tmp_path / "changed")
    assert "The weights were in float32 and were changed to bfloat16" in text_of(tmp_path / "changed")


def test_a_run_that_was_moved_and_one_that_builds_on_another(run, base, llama, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(run.path, moved)
    shutil.move(base, tmp_path / "elsewhere")
    assert [made.stage for made in lineage(moved / "ppo").stages] == ["sft", "reward", "ppo"]
    assert lineage(moved / "ppo").base.name == "base"
    assert lineage(moved / "ppo").base.licence is None, "it is not there to be asked"

    other = open_run(tmp_path / "other", {}, ["whelp", "dpo"])
    stage(other, "dpo", {"seed": 0}, {"model": (str(moved / "sft"), sha256_model(moved / "sft"))}, {})
    assert [made.stage for made in lineage(other.path / "dpo").stages] == ["sft", "dpo"]
    (moved / "sft" / "model.safetensors").write_bytes(b"trained again")
    assert [made.stage for made in lineage(other.path / "dpo").stages] == ["dpo"], "it is another model now"
    assert lineage(other.path / "dpo").base.name == "sft"


def test_what_things_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert source_name(str(cached("smollm2-135m-instruct"))) == "smollm2-135m-instruct"
    assert source_name("/home/ann/.cache/huggingface/hub/models--org--name/snapshots/abc") == "org/name"
    assert source_name("builtin:rankings") == "builtin:rankings"
    assert source_name("owner/set:test") == "owner/set:test"
    assert source_name("data/pairs") == source_name("/home/ann/data/pairs") == "pairs"
    assert cell("a|b\n# c") == r"a\|b # c"


# -- the hub --------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as an upload of small files needs. One may not write to refused/..., and silent/... gets no answer."""

    repositories: ClassVar[dict[str, bool]] = {"owner/old": False}
    """Name -> whether it is private."""
    committed: ClassVar[dict[str, dict[str, bytes]]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        if name in self.repositories:
            self.answer(200, {"id": name, "private": self.repositories[name], "sha": "a" * 40, "siblings": []})
        else:
            self.answer(404, {})

    def do_POST(self):
        self.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://127.0.0.1:{self.server.server_port}"
        name = self.path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
        if self.path == "/api/repos/create":
            self.create(json.loads(body), address)
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif self.path.endswith("/commit/main"):
            files = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            self.committed[name] = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.answer(200, {"commitUrl": f"{address}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer(404, {})

    def create(self, wanted: dict[str, str], address: str) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == "refused":
            self.answer(403, {"error": "You may not write here."})
        elif wanted["organization"] != "silent":
            status = 409 if name in self.repositories else 200
            self.repositories.setdefault(name, wanted.get("visibility") == "private")
            self.answer(status, {"url": f"{address}/{name}"})

    def answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


CONTENT = {
    "README.md": b"---\nlicense: mit\n---\nhello",
    "model.safetensors": bytes(range(256)),
    "deep/a[1].json": b"{}",
}


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `upload` says of each repository, in a process of its own: the hub library reads its settings when it is imported."""
    folder = tmp_path_factory.mktemp("upload")
    (folder / "deep").mkdir()
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)
    assert files_of(folder) == [(name, len(CONTENT[name])) for name in sorted(CONTENT)]
    code = """
import sys
from pathlib import Path
from whelp.errors import WhelpError
from whelp.export.hub import upload
for repo in sys.argv[2:]:
    try:
        print(upload(Path(sys.argv[1]), repo.removesuffix(":private"), repo.endswith(":private")))
    except WhelpError as error:
        print(type(error).__name__, error)
"""
    asked = ["owner/new:private", "owner/old:private", "owner/open", "refused/new", "silent/new"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", code, str(folder), *asked]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    server.shutdown()
    server.server_close()
    thread.join()
    return dict(zip(asked, said.splitlines(), strict=True))


def test_an_upload_is_every_file_of_the_folder_and_no_other(uploaded):
    assert uploaded["owner/new:private"].endswith("/owner/new")
    assert uploaded["owner/open"].endswith("/owner/open")
    assert Hub.committed == {"owner/new": CONTENT, "owner/open": CONTENT}
    assert Hub.repositories == {"owner/old": False, "owner/new": True, "owner/open": False}
    assert Hub.tokens == {"Bearer hf_of_a_test"}


def test_what_is_to_be_private_is_not_put_where_all_can_see_it(uploaded):
    said = "ConfigError --private was given, but owner/old is there already and is public: nothing was uploaded."
    assert uploaded["owner/old:private"] == said
    assert "owner/old" not in Hub.committed


def test_a_hub_that_refuses_or_does_not_answer(uploaded):
    for name, why in (("refused/new", "403"), ("silent/new", "")):
        assert uploaded[name].startswith(f"ModelError {name} could not be uploaded (")
        assert why in uploaded[name] and "Check the network" in uploaded[name]


def test_who_uploads_where_is_asked_first(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    ready("owner/name")
    for name in ("name", "a/b/c", "owner/na me", "../name", "owner/name.git"):
        with pytest.raises(ConfigError, match="expected OWNER/NAME"):
            ready(name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match=r"no token of the hub was found: set HF_TOKEN"):
        ready("owner/name")


# -- the commands ---------------------------------------------------------------------------------------------------


def call(*arguments: str, code: int = 0, input: str | None = None):
    result = CliRunner().invoke(app, ["export", *arguments], input=input, prog_name="whelp")
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def uploads(monkeypatch) -> list[tuple[str, bool, dict[str, int]]]:
    """What would have gone to the hub."""
    seen: list[tuple[str, bool, dict[str, int]]] = []

    def upload(folder: Path, repo: str, private: bool) -> str:
        seen.append((repo, private, dict(files_of(folder))))
        assert 'from_pretrained("owner/name")' in text_of(folder)
        return "https://hub/owner/name"

    monkeypatch.setattr("whelp.export.hub.upload", upload)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    return seen


def test_the_command_lists_what_it_wrote(run, tmp_path, monkeypatch):
    shown = call(
        "hf", "--model", str(run.path / "ppo"), "--output-dir", str(tmp_path / "out"), "--dtype", "float32"
    ).stdout
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert f"model.safetensors       {size:,}\n" in shown
    again = call("hf", "--model", str(run.path / "ppo"), "--output_dir", str(tmp_path / "out"), code=1)
    assert "nothing is overwritten" in again.stderr
    monkeypatch.chdir(tmp_path)
    assert "train one with `whelp run`, or give --model" in call("hf", "--output_dir", "o", code=2).stderr


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_nothing_is_uploaded_before_it_was_shown_and_agreed_to(answer, code, run, uploads, monkeypatch):
    for name in ("checkpoint-9", "samples.jsonl", "metrics.jsonl", "pairs.jsonl"):
        (run.path / "ppo" / name).write_text("{}")
    shown = call("hub", "--model", str(run.path / "ppo"), "--repo", "owner/name", code=code, input=answer).stdout
    table = shown.partition("file ")[2].partition("\n\n")[0].partition("Upload")[0]
    assert [line.split()[0] for line in table.splitlines()[1:]] == FILES
    assert "Upload these files?" in shown
    if code:
        assert uploads == []
    else:
        ((repo, private, files),) = uploads
        assert (repo, private, sorted(files)) == ("owner/name", False, FILES)
        assert "uploaded: https://hub/owner/name" in shown


def test_an_upload_that_is_agreed_to_beforehand(run, uploads):
    shown = call("hub", "--model", str(run.path / "ppo"), "--repo", "owner/name", "--private", "--yes").stdout
    assert "To be uploaded to owner/name, which only its owner sees" in shown
    assert [(repo, private) for repo, private, _ in uploads] == [("owner/name", True)]
    assert "expected OWNER/NAME" in call("hub", "--model", str(run.path / "ppo"), "--repo", "name", code=2).stderr
