"""Reads the scalar metadata at the start of a GGUF file in milliseconds.

`gguf.GGUFReader` first parses every vocabulary entry into an array, which takes seconds. To choose, name and check a
model, names, sizes and numbers are enough.

References:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

Scalar = str | int | float | bool


def read_header(path: Path) -> dict[str, Scalar]:
    """Return the key and value of every entry that is not an array.

    Raises:
        ValueError: The file is not a GGUF file, or is truncated.
    """
    with _opened(path) as file:
        return _read_entries(file)[0]


def read_tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors.

    Raises:
        ValueError: The file is not a GGUF file, or is truncated.
    """
    with _opened(path) as file:
        _, count = _read_entries(file)
        return [_tensor_name(file) for _ in range(count)]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        try:
            yield file
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{str(path)!r} is not a readable GGUF file ({error}). Copy or download it again."
            ) from error


def _read_entries(file: BinaryIO) -> tuple[dict[str, Scalar], int]:
    """Read the entries, and return them with the number of tensors, which follow."""
    magic = file.read(4)
    if magic != b"GGUF":
        raise struct.error(f"it starts with {magic!r}, not b'GGUF'")
    _number(file, "<I")  # the version: 2 and 3 have the same layout
    num_tensors = int(_number(file, "<Q"))
    entries: dict[str, Scalar] = {}
    for _ in range(int(_number(file, "<Q"))):
        key = _text(file)
        value = _value(file, int(_number(file, "<I")))
        if value is not None:
            entries[key] = value
    return entries, num_tensors


def _tensor_name(file: BinaryIO) -> str:
    """Read the entry of one tensor: its name, shape, kind and place."""
    name = _text(file)
    file.seek(8 * int(_number(file, "<I")) + 4 + 8, 1)
    return name


def _value(file: BinaryIO, kind: int) -> Scalar | None:
    """Read one value; skip an array and return `None`."""
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _number(file, _FORMATS[kind])
    item_kind, length = int(_number(file, "<I")), int(_number(file, "<Q"))
    if item_kind in _FORMATS:
        file.seek(struct.calcsize(_FORMATS[item_kind]) * length, 1)
        return None
    for _ in range(length):
        _value(file, item_kind)
    return None


def _text(file: BinaryIO) -> str:
    length = int(_number(file, "<Q"))
    raw = file.read(length)
    if len(raw) < length:
        raise struct.error("it ends inside a text")
    return raw.decode("utf-8")


def _number(file: BinaryIO, form: str) -> int | float | bool:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
