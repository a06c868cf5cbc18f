"""Downloads models from the Hugging Face hub, or takes them from its cache."""

from __future__ import annotations

from pathlib import Path

from sirius_dspy.errors import MissingDependencyError, ModelNotFoundError, UnreadableModelError
from sirius_dspy.local.home import INSTALL
from sirius_dspy.local.weights import CONFIG, INDEX, PICKLES, SINGLE, TOKENIZER_FILES, refuse_pickles

PATTERNS = (CONFIG, SINGLE, INDEX, "model-*-of-*.safetensors", *TOKENIZER_FILES)
"""What is downloaded of a repository: no code, no other weights."""


def download(model: str, revision: str | None = None) -> Path:
    """Return the folder or GGUF file of a model of the hub, downloaded if it is not in the hub's cache.

    Args:
        model: `owner/repository`, or `owner/repository/file.gguf`.
        revision: A branch, tag or commit; by default the main branch.

    Raises:
        MissingDependencyError: `huggingface_hub` is not installed.
        ModelNotFoundError: The hub has no such model, or cannot be reached, or asks for a login.
        UnreadableModelError: The hub has the weights in no format that is read.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            f"The model {model!r} comes from the Hugging Face hub. Run `{INSTALL}`."
        ) from error
    owner, repository, *inside = model.split("/")
    repo = f"{owner}/{repository}"
    try:
        if inside:
            return Path(huggingface_hub.hf_hub_download(repo, "/".join(inside), revision=revision))
        return _download(repo, revision)
    except (UnreadableModelError, ModelNotFoundError):
        raise
    except Exception as error:  # those of the hub, of its network and of its cache have no common base class
        raise ModelNotFoundError(_explain(model, revision, error)) from error


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        repo, files = _list(repo, revision)
    except Exception as error:  # as above
        if not _is_network(error):
            raise
        return _from_cache(repo, revision, error)
    if CONFIG in files and any(name.endswith(".safetensors") for name in files):
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(PATTERNS)))
    ggufs = [name for name in files if name.endswith(".gguf")]
    best = [name for name in ggufs if "q8_0" in name.lower()] or (ggufs if len(ggufs) == 1 else [])
    if best:
        return Path(huggingface_hub.hf_hub_download(repo, best[0], revision=revision))
    if ggufs:
        raise ModelNotFoundError(
            f"{repo!r} has {len(ggufs)} GGUF files, none of them Q8_0. Name one: '{repo}/FILE.gguf'."
        )
    pickled = sorted(name for name in files if name.endswith(PICKLES))
    if pickled:
        raise UnreadableModelError(refuse_pickles(repo, pickled[0]))
    raise UnreadableModelError(
        f"{repo!r} on the Hugging Face hub holds no language model: it has neither {CONFIG!r} with safetensors nor a "
        "GGUF file. Take another repository."
    )


def _list(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """List the files of a repository, or of its twin with GGUF files if there is only that one."""
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    if not hub.repo_exists(repo) and hub.repo_exists(f"{repo}-GGUF"):
        repo = f"{repo}-GGUF"
    return repo, list(hub.list_repo_files(repo, revision=revision))


def _from_cache(repo: str, revision: str | None, error: Exception) -> Path:
    """Return what an earlier download left, since the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(PATTERNS), local_files_only=True
        )
    except errors.LocalEntryNotFoundError:
        raise error from None
    return Path(found)


def _is_network(error: Exception) -> bool:
    """Return whether the hub could not be reached; its own errors are answers."""
    from huggingface_hub import errors

    answers = errors.HfHubHTTPError | errors.EntryNotFoundError | ValueError
    return isinstance(error, errors.LocalEntryNotFoundError) or not isinstance(error, answers)


def _explain(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    where = f"{model!r}" if revision is None else f"{model!r} at the revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"The model {where} is gated. Accept its license at https://huggingface.co/{model}, and log in with "
            "`hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The Hugging Face hub has no model {where}. Pass a branch, tag or commit of it as `revision`."
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError):
        return (
            f"The Hugging Face hub has no model {where}, or it is private. Check the name, or log in with "
            f"`hf auth login`. The hub said: {error}"
        )
    if _is_network(error):
        return (
            f"The Hugging Face hub cannot be reached, and the model {where} is not in its cache. Connect to the "
            f"network, or pass the path of a model folder or .gguf file. The reason: {error}"
        )
    return f"The Hugging Face hub did not give the model {where}: {error}"
