"""Reads untrusted files: refuses links, devices, and oversized or deeply nested JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

from sirius_dspy.dspy_internals import CUSTOM_TYPE_START_IDENTIFIER
from sirius_dspy.errors import CheckpointError

MAX_DEPTH = 64
"""Maximum nesting of lists and objects; results and demonstrations have a handful of levels."""

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""With these flags, opening fails at a link and does not block at a pipe."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file; links and devices are refused.

    Raises:
        FileNotFoundError: The file does not exist.
    CheckpointError: It is not a regular file.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        raise CheckpointError(f"{str(path)!r} is not a plain file. A checkpoint holds no links and no devices.")
    file = os.fdopen(os.open(path, os.O_RDONLY | _NO_LINKS), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise CheckpointError(f"{str(path)!r} is not a plain file. A checkpoint holds no links and no devices.")


def sha256(path: Path) -> str:
    """Return the hex digest of a regular file's content."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON file strictly.

    Raises:
        FileNotFoundError: The file does not exist.
        CheckpointError: It is too large, not UTF-8, or not JSON, repeats a key, is nested too deeply, or holds NaN, an
            infinite number, or text that DSPy would read as an image.
    """
    with open_regular(path) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise CheckpointError(f"{str(path)!r} is larger than {max_bytes >> 20} MB, so it was not written by `save`.")
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
        _check_tree(value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(
            f"{str(path)!r} is damaged, or was not written by `save`: {reason}. Copy or save the checkpoint again."
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a key occurs twice")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _check_tree(value: Any) -> None:
    """Limit the depth, and refuse the markers by which DSPy finds images in texts: it would fetch their addresses."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        if any(isinstance(item, str) and CUSTOM_TYPE_START_IDENTIFIER in item for item in level):
            raise ValueError("a text holds a mark of DSPy's custom types")
        level = [inner for item in level for inner in _inside(item)]
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()
