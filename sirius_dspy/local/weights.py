"""Weights on this machine: one GGUF file, or a folder in Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sirius_dspy.errors import ModelNotFoundError, UnreadableModelError
from sirius_dspy.local.home import alone

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"),
)
"""Files that decide how messages become tokens, and which tokens end a reply."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that run code when they are read."""


@dataclass(frozen=True)
class Weights:
    """Weights and their identity.

    Attributes:
        id: `local/<name>@<12 hex digits>`.
        path: Absolute; a GGUF file, or a folder with `config.json`, safetensors and a tokenizer.
    """

    id: str
    path: Path

    @property
    def digits(self) -> str:
        """The first 12 hex digits of a SHA-256 of the content."""
        return self.id.rpartition("@")[2]

    @property
    def name(self) -> str:
        """The part of the id that is for people."""
        return self.id.removeprefix("local/").partition("@")[0]

    @property
    def is_gguf(self) -> bool:
        """Whether the weights are one GGUF file."""
        return is_gguf(self.path)

    @property
    def folder(self) -> Path:
        """The folder of the weights; for fine-tuned ones, it also holds `adapter/` and `training.json`."""
        return self.path.parent if self.is_gguf else self.path

    @cached_property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.stat().st_size for file in files_of(self.path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of the model; empty for a GGUF file, which has a header instead."""
        return {} if self.is_gguf else read_config(self.path)


def is_gguf(path: Path) -> bool:
    """Return whether a path of weights is a GGUF file rather than a folder."""
    return path.is_file() or (path.suffix == ".gguf" and not path.is_dir())


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of the language model of a folder, without those of its other parts.

    Raises:
        UnreadableModelError: `config.json` is no JSON object.
    """
    config = _read_json(folder / CONFIG)
    return {**config, **_as_table(config.get("text_config"))}


def files_of(path: Path) -> list[Path]:
    """List the files that are the weights: a GGUF file, or those files of a folder that are ever read.

    Raises:
        ModelNotFoundError: A file is missing.
        UnreadableModelError: The folder has no safetensors, or an index that leads out of it.
    """
    if is_gguf(path):
        return [path]
    names = [CONFIG, *_safetensors(path), *(name for name in TOKENIZER_FILES if (path / name).is_file())]
    files = [path / name for name in names]
    for file in files:
        if not file.is_file():
            raise ModelNotFoundError(
                f"The model folder {str(path)!r} has no file {file.name!r}. Copy or download it again."
            )
    return files


def _safetensors(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        named = list(_as_table(_read_json(folder / INDEX).get("weight_map")).values())
        if not named or not all(isinstance(name, str) and Path(name).name == name for name in named):
            raise UnreadableModelError(
                f"The index {str(folder / INDEX)!r} names no files, or files outside its folder. Copy it again."
            )
        return [INDEX, *sorted(set(named))]
    pickled = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if pickled and not (folder / SINGLE).is_file():
        raise UnreadableModelError(refuse_pickles(str(folder), pickled[0]))
    return [SINGLE]


def refuse_pickles(where: str, name: str) -> str:
    """Say why weights in Python's pickle format are not read."""
    return (
        f"The weights of {where!r} are only there as {name!r}, a format that can run code when it is read, so it is "
        "refused. Convert them to safetensors on a machine that may run that code, or take another model."
    )


def check_folder(folder: Path) -> None:
    """Check what can be checked of a model folder without loading it.

    Raises:
        ModelNotFoundError: A file is missing.
        UnreadableModelError: The weights are in another format, or quantized, or there is no chat template.
    """
    files_of(folder)
    quantized = _as_table(_read_json(folder / CONFIG).get("quantization_config"))
    if quantized:
        raise UnreadableModelError(
            f"The weights in {str(folder)!r} are quantized ({quantized.get('quant_method', 'unknown')!r}), and can be "
            "neither trained nor converted. Take the model that they were made from."
        )
    has_template = (folder / "chat_template.jinja").is_file() or bool(
        (folder / "tokenizer_config.json").is_file()
        and _read_json(folder / "tokenizer_config.json").get("chat_template")
    )
    if not has_template:
        raise UnreadableModelError(no_template(str(folder)))


def no_template(where: str) -> str:
    """Say that a model cannot read chat messages."""
    return (
        f"The model {where!r} has no chat template, so it does not know how to read messages; base models have none. "
        "Take the model's chat variant, often named '-Instruct' or '-it', or add a `chat_template.jinja`."
    )


def read_context(weights: Weights) -> int | None:
    """Return the length of the longest sequence of a folder's model, in tokens, if its configuration tells."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        if isinstance(weights.config.get(name), int):
            return int(weights.config[name])
    return None


@contextmanager
def isolated(path: Path) -> Iterator[Path]:
    """Yield the weights in a folder that contains nothing else: the GGUF file in it, or the folder."""
    with alone(*files_of(path)) as folder:
        yield folder / path.name if is_gguf(path) else folder


def _as_table(value: Any) -> dict[str, Any]:
    """A part of a JSON file, empty where it is none or something else than a table."""
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"The model folder {str(path.parent)!r} has no file {path.name!r}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableModelError(f"{str(path)!r} is not JSON ({error}). Copy or download it again.") from error
    if not isinstance(values, dict):
        raise UnreadableModelError(f"{str(path)!r} is no JSON object. Copy or download it again.")
    return values
