"""One database of a library: opened on first use, shared by threads, opened again after a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from sirius_dspy.errors import LibraryDamagedError
from sirius_dspy.library.engine import open_engine
from sirius_dspy.library.schema import META
from sirius_dspy.library.translate import translate_errors
from sirius_dspy.library.urls import parse_url, public_url, sqlite_file
from sirius_dspy.redact import remember_address

T = TypeVar("T")


class Database:
    """Reads and writes in transactions, and raises `LibraryError` where they fail.

    Args:
        location: The path of a SQLite file, or a URL.
    """

    def __init__(self, location: str | Path | sa.URL) -> None:
        self.url = parse_url(location)
        if self.url.password or self.url.query:
            remember_address(self.url.render_as_string(hide_password=False))
        self._engine: sa.Engine | None = None
        self._pid = 0  # of the process that opened `_engine`: connections must not be shared across a fork
        self._lock = threading.Lock()  # protects `_engine` and `_pid`: threads open the database once

    @property
    def public_url(self) -> str:
        """The URL without its password."""
        return public_url(self.url)

    @property
    def file(self) -> Path | None:
        """The file of a SQLite library; `None` for PostgreSQL."""
        return sqlite_file(self.url)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Begin a transaction in which rows are read and converted to values.

        Raises:
            LibraryDamagedError: A row cannot be converted.
            LibraryError: The database failed.
        """
        try:
            with translate_errors(self.url), self._open().begin() as connection:
                yield connection
        except (ValueError, TypeError, KeyError) as error:
            raise LibraryDamagedError(
                f"The library {self.public_url!r} holds a value that sirius_dspy did not write: {error}. Run "
                "`verify()` to find the rows, and restore the library from a backup."
            ) from error

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Call `work` in a transaction that excludes other writers, and return its result.

        Raises:
            LibraryError: The database failed, and nothing was written.
        """
        with translate_errors(self.url), self._open().execution_options(writes=True).begin() as connection:
            return work(connection)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None

    def _open(self) -> sa.Engine:
        with self._lock:
            if self._engine is not None and self._pid != os.getpid():
                self._engine.dispose(close=False)  # the parent process goes on using these connections
                self._engine = None
            if self._engine is None:
                self._engine, self._pid = open_engine(self.url), os.getpid()
            return self._engine


def last_number(connection: sa.Connection, table: sa.Table) -> int:
    """Return the number of the row of a table that was added last; 0 if there is none."""
    return int(connection.scalar(sa.select(sa.func.max(table.c.number))) or 0)


def read_library_id(database: Database) -> str:
    """Return the id that a library was given when it was made."""
    with database.read() as connection:
        return str(connection.execute(sa.select(META.c.value).where(META.c.key == "library_id")).scalar_one())
