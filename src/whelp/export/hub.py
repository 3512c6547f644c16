"""An exported folder as a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from whelp.errors import ConfigError, ModelError


def ready(repo: str) -> None:
    """Raises `ConfigError` where `repo` is no name of a repository, or nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo is {repo!r}, expected OWNER/NAME: {error}") from error
    if "/" not in repo:
        raise ConfigError(f"--repo is {repo!r}, expected OWNER/NAME.")
    if get_token() is None:
        raise ConfigError(
            "no token of the hub was found: set HF_TOKEN to one that may write, or log in (hf auth login)."
        )


def files_of(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of every file that would be uploaded: all there are."""
    return sorted(
        (file.relative_to(folder).as_posix(), file.stat().st_size) for file in folder.rglob("*") if file.is_file()
    )


def upload(folder: Path, repo: str, private: bool) -> str:
    """Make the repository where it is not there yet, upload what `files_of` names, and return its address.

    Raises `ConfigError` where it is to be private and is there already for all to see, and `ModelError` where the hub refuses or
    does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of whichever client it uses

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:  # what was there before keeps who may see it
            raise ConfigError(f"--private was given, but {repo} is there already and is public: nothing was uploaded.")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by whelp")
    except (HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(
            f"{repo} could not be uploaded ({reason}). Check the network, and that the token may write there (hf auth whoami)."
        ) from error
    return str(address)
