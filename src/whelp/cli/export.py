"""`whelp export hf`, `whelp export gguf` and `whelp export hub`: a trained model handed on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from whelp.cli import show
from whelp.cli.base import LOOK_PANEL, ModelSource, trained_model

OutputFolder = Annotated[
    Path, typer.Option("--output_dir", metavar="FOLDER", help="A new folder for it; one that holds files is refused.")
]
Dtype = Annotated[str, typer.Option("--dtype", metavar="bfloat16|float32", help="Number format of the weights.")]
GGUFDtype = Annotated[str, typer.Option("--dtype", metavar="f16|f32|q8_0", help="Number format of the matrices.")]
Repository = Annotated[
    str, typer.Option("--repo", metavar="OWNER/NAME", help="The repository; made where it is not there.")
]
Private = Annotated[bool, typer.Option("--private", help="Make a repository that only its owner sees.")]
Yes = Annotated[bool, typer.Option("--yes", help="Upload without asking.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Hand a model on: a Hugging Face folder, a GGUF file, the hub.")
    for command in (hf, gguf, hub):
        group.command()(command)
    app.add_typer(group, name="export", rich_help_panel=LOOK_PANEL)


def hf(output_dir: OutputFolder, model: ModelSource = None, dtype: Dtype = "bfloat16") -> None:
    """Write a Hugging Face folder with a model card: what it was made from, what was measured, and what was not.

    \b
    whelp export hf --output_dir my-assistant          the default run's last policy
    whelp export hf --model out/reward --output_dir my-reward --dtype float32
    """
    from whelp.export.hf import export_hf

    export_hf(_resolved(model), output_dir, dtype)
    _files(output_dir)


def gguf(output_dir: OutputFolder, model: ModelSource = None, dtype: GGUFDtype = "f16") -> None:
    """Write a GGUF file for llama.cpp and a Modelfile for Ollama; Llama models only.

    \b
    whelp export gguf --output_dir my-gguf
    whelp export gguf --model out/sft --output_dir my-gguf --dtype q8_0
    cd my-gguf && ollama create my-assistant
    """
    from whelp.export.gguf import export_gguf

    export_gguf(_resolved(model), output_dir, dtype)
    _files(output_dir)
    if "\nTEMPLATE " not in (output_dir / "Modelfile").read_text(encoding="utf-8"):
        typer.echo("note: the chat template is not ChatML, so the Modelfile has none; Ollama looks for one by itself")


def hub(
    repo: Repository, model: ModelSource = None, private: Private = False, yes: Yes = False, dtype: Dtype = "bfloat16"
) -> None:
    """Upload what `whelp export hf` writes, and nothing else, to the Hugging Face hub.

    Who uploads is said by HF_TOKEN or by hf auth login. The files are listed first, and you are asked.

    \b
    whelp export hub --model runs/assistant/ppo --repo me/my-assistant --private
    """
    from whelp.export.hub import ready, upload

    ready(repo)
    from whelp.export.hf import export_hf

    with tempfile.TemporaryDirectory(prefix="whelp-") as scratch:
        folder = Path(scratch) / "upload"
        export_hf(_resolved(model), folder, dtype, name=repo)
        _files(folder, f"To be uploaded to {repo}{', which only its owner sees' if private else ''}")
        if not yes:
            typer.confirm("Upload these files? Files of the same name there are replaced.", abort=True)
        typer.echo(f"\nuploaded: {upload(folder, repo, private)}")


def _resolved(model: str | None) -> Path:
    from whelp.models.sources import resolve
    from whelp.progress import make_progress

    return resolve(trained_model(model), make_progress().say)


def _files(folder: Path, title: str | None = None) -> None:
    from whelp.export.hub import files_of

    show.table(title or str(folder), ("file", "bytes"), [(name, f"{size:,}") for name, size in files_of(folder)])
