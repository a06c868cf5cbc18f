"""The folder where the local stack keeps what it can make again: hashes, index, tokenizers, training copies, models.

`SIRIUS_HOME` names it; `~/.sirius_dspy` by default. Everything in it is written under a temporary name and renamed, so
several processes may share it and a kill leaves no half file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home(*parts: str) -> Path:
    """A path below the home folder; nothing is created. Reads the environment each time, so that tests can move it."""
    root = os.environ.get("SIRIUS_HOME") or "~/.sirius_dspy"
    return Path(root).expanduser().absolute().joinpath(*parts)


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """The same file in a folder of its own, under the same name.

    Transformers reads what lies beside a file as well: templates, adapters, and code to run. An id stands for one file,
    and a checkpoint of somebody else may hold anything.
    """
    with tempfile.TemporaryDirectory(prefix="sirius-alone-") as folder:
        place = Path(folder) / file.name
        try:
            place.symlink_to(file.absolute())
        except OSError:  # not everybody may do that on Windows
            shutil.copyfile(file, place)
        yield place


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when the block ends well, and vanishes when it does not.

    If another process finished the same folder first, its result stays and ours is dropped: both hold the same content.
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
