"""Files that are there whole or not at all, and names that every file system takes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from uuid import uuid4

from sirius_dspy.redact import hide

_LONGEST_NAME = 100
"""Characters of a name that a file keeps; file systems allow 255 bytes, and suffixes come on top."""


_HASH = 12
"""Hexadecimal digits that tell names apart which look the same as file names."""


_SIMPLE = re.compile(rf"(?=.{{1,{_LONGEST_NAME}}}\Z)[a-z0-9_][a-z0-9_.-]*(?<!\.)\Z")


_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?\Z|.*(-[0-9a-f]{12}|\.sources)\Z")
"""Names that are devices on Windows, and those that look like names which are made here."""


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, and stays through a power cut; credentials are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(hide(text))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """A name as a file name that no other name has, on any file system.

    A simple name stays as it is. Any other, such as one with a slash, with capital letters (which some file systems
    do not tell from small ones) or with 300 letters, becomes what can be kept of it and a hash of the whole.

    Examples:
        >>> file_name("solver.predict")
        'solver.predict'
        >>> file_name("agents[0]")
        'agents_0_-20fea097a975'
    """
    return name if _SIMPLE.match(name) and not _RESERVED.match(name) else hash_name(name)


def hash_name(name: str) -> str:
    """What can be kept of a name in letters, digits, hyphens and underscores, and a hash of the whole."""
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[: _LONGEST_NAME - _HASH - 1].lstrip("-")
    return f"{readable or '_'}-{digits}"
