"""Opens the library of a compile that is given by its folder."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.urls import parse_url, sqlite_file
from sirius_dspy.optimizer.run_dir import RunDir

_HIDDEN_PASSWORD = "***"
"""What SQLAlchemy shows in place of a password."""


def open_library(where: str | Path | sa.URL) -> ExperienceLibrary:
    """Open a library that exists.

    Args:
        where: The folder of a compile, a SQLite file, or a database URL. A folder has its own library, or the record of
            the one that the compile was given, without a password.

    Raises:
        LibraryError: There is none.
    """
    is_folder = "://" not in str(where) and Path(str(where)).is_dir()
    return ExperienceLibrary.existing(_library_of(RunDir(Path(str(where)))) if is_folder else where)


def _library_of(run_dir: RunDir) -> Path | str:
    """Where the library of a compile is."""
    if run_dir.library.is_file():
        return run_dir.library
    if (noted := run_dir.noted_library()) is not None:
        url = str(noted["url"])
        _refuse_the_originals(run_dir, url)
        if parse_url(url).password != _HIDDEN_PASSWORD:
            return url
        raise LibraryError(f"The record of the library, {url!r}, is without its password. Pass the URL itself.")
    raise LibraryError(
        f"The folder {str(run_dir.path)!r} holds no library, and no record of where its compile kept one. Pass the "
        "path or the URL of the library itself."
    )


def _refuse_the_originals(run_dir: RunDir, url: str) -> None:
    """Refuse the library in another folder of the same compile, of which this one is a copy.

    Raises:
        LibraryError: It is there.
    """
    file, identity = sqlite_file(parse_url(url)), run_dir.identity()
    if file is None or identity is None or file.parent.resolve() == run_dir.path.resolve():
        return
    original = RunDir(file.parent).identity()
    if original is not None and original.get("run") == identity.get("run"):
        raise LibraryError(
            f"The folder {str(run_dir.path)!r} is a copy of {str(file.parent)!r} without its library. Copy "
            f"{file.name!r}, too, or pass {str(file)!r} to use that one."
        )
