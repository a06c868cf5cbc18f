"""What a compile leaves behind as files, without credentials: its library and its report."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import make_url

from sirius_dspy.errors import LibraryError
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.redact import hide_keys
from sirius_dspy.report import write_report

logger = logging.getLogger(__name__)

MAX_LIBRARY_BYTES = 256_000_000
"""A larger library stays where it is: the run has its address, and a copy would take minutes."""

_CELLS_AT_ONCE = 2000


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite library, if it is there and small enough to be copied."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    path = Path(parsed.database)
    return path if path.is_file() and path.stat().st_size <= MAX_LIBRARY_BYTES else None


def copy_library(library: Path, target: Path) -> Path:
    """Copy a library through SQLite itself: the newest rows may still be in the write-ahead log beside the file.

    Texts that look like a key are replaced in the copy; content hashes of such rows do not hold there.
    """
    address = f"file:{quote(str(library.resolve()))}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        if _redact_cells(copy):
            copy.commit()
            copy.execute("VACUUM")  # or the old texts would stay in free pages
    return target


def copy_text(path: Path, folder: Path, name: str) -> Path:
    """Copy a text file line by line, without what looks like a key."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogatepass"}
    with path.open(**options) as source, target.open("w", **options) as copy:
        while lines := source.readlines(1_000_000):  # many at once: even an empty text costs something to redact
            copy.write(hide_keys("".join(lines)))
    return target


def make_report(results: CompileResult, folder: Path, library: Path | None, day: date) -> tuple[Path, ...]:
    """Write the report of a compile; a library that cannot be read is left out of it."""
    clean = CompileResult.from_dict(hide_keys(results.to_dict()))
    try:
        return write_report(clean, folder, library=library, day=day)
    except LibraryError as error:
        logger.info("The report is written without the library: %s", error)
        return write_report(clean, folder, day=day)


def _redact_cells(database: sqlite3.Connection) -> bool:
    """Replace what looks like a key in all texts; true if there was anything."""
    changed = False
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        columns = [name for _, name, kind, *_ in database.execute(f'PRAGMA table_info("{table}")') if kind == "TEXT"]
        for column in columns:
            changes = list(_find_changed_cells(database, table, column))
            database.executemany(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', changes)
            changed = changed or bool(changes)
    return changed


def _find_changed_cells(database: sqlite3.Connection, table: str, column: str) -> Iterator[tuple[str, int]]:
    """New text and row of each cell that holds something like a key; most pages hold none and are read once."""
    cursor = database.execute(f'SELECT rowid, "{column}" FROM "{table}" WHERE "{column}" IS NOT NULL')
    while page := cursor.fetchmany(_CELLS_AT_ONCE):
        joined = "\n".join(str(text) for _, text in page)
        if hide_keys(joined) != joined:
            yield from ((clean, row) for row, text in page if (clean := hide_keys(str(text))) != text)
