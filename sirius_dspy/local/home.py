"""The folder in which the local stack caches hashes, index, tokenizers, training copies and models.

`SIRIUS_HOME` sets it; the default is `~/.sirius_dspy`. Everything in it can be created again. Files are written under a
temporary name and renamed, so several processes can share it and a killed process leaves no partial file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALL = "pip install 'sirius-dspy[local]'"


def home(*parts: str) -> Path:
    """Return a path below the home folder, without creating it. The environment is read at every call."""
    root = os.environ.get("SIRIUS_HOME") or "~/.sirius_dspy"
    return Path(root).expanduser().absolute().joinpath(*parts)


@contextmanager
def alone(*files: Path) -> Iterator[Path]:
    """Yield a folder that contains nothing but these files, under the same names.

    Transformers also reads the neighbors of a file: templates, adapters, and code to run. An id identifies certain
    files only, and the folder of an untrusted checkpoint may hold anything.
    """
    with tempfile.TemporaryDirectory(prefix="sirius-alone-") as folder:
        for file in files:
            place = Path(folder) / file.name
            try:
                place.symlink_to(file.absolute())
            except OSError:  # on Windows, not every user may create links
                shutil.copyfile(file, place)
        yield Path(folder)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` if the block succeeds, and is removed if it fails.

    If another process has finished the same folder first, its result is kept, because both have the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield draft
        try:
            draft.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
