"""Atomic writes, and file names that every file system accepts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from sirius_dspy.redact import hide

_LONGEST_NAME = 100
"""Maximum length of a file name; file systems allow 255 bytes, and suffixes are added to it."""


_HASH = 12
"""Number of hexadecimal digits that distinguish names which would give the same file name."""


_SIMPLE = re.compile(rf"(?=.{{1,{_LONGEST_NAME}}}\Z)[a-z0-9_][a-z0-9_.-]*(?<!\.)\Z")


_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?\Z|.*(-[0-9a-f]{12}|\.sources)\Z")
"""Matches device names of Windows, and names that look like the ones `hash_name` makes."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably, with credentials removed."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file like `write_text`, from lines that end in line breaks and are not held in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(map(hide, lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, with credentials removed. A line that was cut off before stays by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            is_cut = file.read(1) != b"\n"
        file.write((b"\n" if size and is_cut else b"") + hide(line).encode("utf-8", "surrogatepass") + b"\n")


def file_name(name: str) -> str:
    """Return a file name that is unique to this name on any file system.

    A simple name is returned unchanged. Any other name, such as one with a slash, with capital letters (some file
    systems ignore case) or with 300 letters, is shortened to its readable characters and a hash of the whole.

    Examples:
        >>> file_name("solver.predict")
        'solver.predict'
        >>> file_name("agents[0]")
        'agents_0_-20fea097a975'
    """
    return name if _SIMPLE.match(name) and not _RESERVED.match(name) else hash_name(name)


def hash_name(name: str) -> str:
    """Return the letters, digits, hyphens and underscores of a name, followed by a hash of the whole name."""
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[: _LONGEST_NAME - _HASH - 1].lstrip("-")
    return f"{readable or '_'}-{digits}"
