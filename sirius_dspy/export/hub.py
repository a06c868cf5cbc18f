"""Uploads exported agents to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from sirius_dspy.errors import ExportError, MissingDependencyError


def push(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload one exported folder as a repository of models.

    The token is the one of `hf auth login`, or the environment variable `HF_TOKEN`.

    Args:
        folder: A folder that `export` wrote, such as `exported/judge/peft`.
        repository: `owner/name`; it is created if it does not exist.
        private: Whether a new repository can be seen by its owner alone.

    Returns:
        The address of the commit.

    Raises:
        ExportError: The folder does not exist, or the hub refused; the message says why.
        MissingDependencyError: `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependencyError("Uploads need huggingface_hub. Run `pip install huggingface_hub`.") from error
    if not (Path(folder) / "README.md").is_file():
        raise ExportError(f"{str(folder)!r} is not an exported agent. Pass a folder such as 'exported/judge/peft'.")
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of sirius_dspy"))
    except (OSError, ValueError) as error:  # the base classes of the hub's errors
        raise ExportError(
            f"The hub did not take {str(folder)!r} as {repository!r}: {error} Log in with `hf auth login`, and check "
            "that the repository is yours."
        ) from error
