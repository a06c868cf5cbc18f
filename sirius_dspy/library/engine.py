"""Opens the database of an experience library, SQLite or PostgreSQL, and brings its schema up to date."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.library.migrations import SCHEMA_VERSION, migrate, schema_version
from sirius_dspy.library.urls import sqlite_file

LOCK_TIMEOUT_S = 60.0
"""Seconds to wait while others write. A transaction takes milliseconds, a batch of `add_all` some seconds."""

CACHE_KIB = 128 * 1024
"""Memory that SQLite may use for pages. Ids are hashes, so each insertion changes a page of an index anywhere: where
those pages do not fit, the rate falls with the size of the library. The memory is only taken as pages are touched."""

LOG_PAGES = 128 * 1024
"""Pages in SQLite's log before they are moved into the file. By then a page has been changed often, and moves once. The
log of a library that gets many runs takes up to 650 MB of disk until it is closed."""


def open_engine(url: sa.URL) -> sa.Engine:
    """Connect, and create or migrate the schema.

    Begin a transaction that will write with the execution option `writes=True`.

    Args:
        url: The result of `parse_url`.

    Raises:
        LibraryDamagedError: The database belongs to another application.
        LibraryVersionError: A newer version of sirius_dspy wrote it.
        MissingDependencyError: psycopg is not installed.
    """
    path = sqlite_file(url)
    engine = _postgres_engine(url) if path is None else _sqlite_engine(url, path)
    try:
        _bring_up_to_date(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _sqlite_engine(url: sa.URL, path: Path) -> sa.Engine:
    _check_is_ours(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = {} if "timeout" in url.query else {"timeout": LOCK_TIMEOUT_S}
    engine = sa.create_engine(url, hide_parameters=True, pool_timeout=LOCK_TIMEOUT_S, connect_args=timeout)
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_is_ours(path: Path) -> None:
    """Refuse a file of another application; a read-only connection leaves such a file unchanged.

    Raises:
        LibraryDamagedError: The file belongs to another application.
        LibraryVersionError: A newer version of sirius_dspy wrote it.
        DatabaseError: It is not a database.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size == 0:
        return

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT_S)

    with sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool).connect() as connection:
        schema_version(connection)
        # SQLite misses a last page that is cut short, unless its log is about to write that page again.
        if size % connection.exec_driver_sql("PRAGMA page_size").scalar_one() and not _has_log(path):
            raise sqlite3.DatabaseError("database disk image is malformed")


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # not when the module begins one, but `_begin_sqlite`
    _use_log(connection)
    connection.execute("PRAGMA synchronous = FULL")  # rollouts are paid for: a commit also survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")


def _use_log(connection: sqlite3.Connection) -> None:
    """Let readers work beside one writer.

    Two processes may open a new file at once, and SQLite does not wait for the lock that this change takes.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and then writes fails at once, without waiting, if another one wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgres_engine(url: sa.URL) -> sa.Engine:
    try:
        # Pinged, because a compile may leave a connection alone for the hours of a fine-tuning job.
        engine = sa.create_engine(url, hide_parameters=True, pool_timeout=LOCK_TIMEOUT_S, pool_pre_ping=True)
    except ImportError as error:
        raise MissingDependencyError(
            "A PostgreSQL library needs psycopg. Run `pip install 'sirius-dspy[postgres]'`."
        ) from error
    sa.event.listen(engine, "connect", _configure_postgres)
    sa.event.listen(engine, "begin", _begin_postgres)
    return engine


def _configure_postgres(connection: Any, _: Any) -> None:
    # Unless the `options` of the URL set it; by default PostgreSQL waits forever.
    statement = "SELECT set_config('lock_timeout', %s, false) WHERE current_setting('lock_timeout') = '0'"
    connection.execute(statement, [f"{LOCK_TIMEOUT_S:.0f}s"])
    connection.commit()


def _begin_postgres(connection: sa.Connection) -> None:
    # One writer at a time, as in SQLite. Else row numbers would not be in the order of commits, and readers, who go by
    # numbers, would miss rows; and two imports of the same rows in different order would lock each other out again
    # and again (five tries did not suffice).
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.sirius_dspy'))")


def _bring_up_to_date(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        if schema_version(connection) == SCHEMA_VERSION:
            return
    with engine.execution_options(writes=True).begin() as connection:
        migrate(connection)
