"""Opens the database of an experience library, SQLite or PostgreSQL, and says in our words what goes wrong with it.

Passwords stay in the URL: none of the texts made here has one.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, SQLAlchemyError, StatementError

from sirius_dspy.credentials import is_secret_name
from sirius_dspy.errors import LibraryDamagedError, LibraryError, MissingDependencyError
from sirius_dspy.library.migrations import SCHEMA_VERSION, migrate, schema_version
from sirius_dspy.redact import redact_error

LOCK_TIMEOUT_S = 60.0
"""Seconds to wait while others write; a transaction takes milliseconds, a batch of `add_all` about a second."""


def parse_url(url: str | Path | sa.URL) -> sa.URL:
    """The one form of a library's URL: an absolute path, or the psycopg driver.

    Raises:
        LibraryError: It is no URL, of another database, or in memory.
    """
    if isinstance(url, Path) or (isinstance(url, str) and "://" not in url):
        return _parse_sqlite(sa.URL.create("sqlite", database=str(url)))
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        # Without its cause, which quotes the URL, password and all.
        raise LibraryError(_bad_url(str(url).partition("://")[0])) from None
    if parsed.get_backend_name() == "sqlite":
        return _parse_sqlite(parsed)
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise LibraryError(_bad_url(parsed.drivername))


def _bad_url(scheme: str) -> str:
    return (
        f"The library URL that begins with {scheme!r} cannot be used. Expected a path, `sqlite:///path`, or "
        "`postgresql+psycopg://user:password@host/database`, with special characters in the password written as `%40`."
    )


def _parse_sqlite(url: sa.URL) -> sa.URL:
    database = url.database or ""
    if database in ("", ":memory:") or database.startswith("file:"):
        raise LibraryError(
            f"The library cannot live in {database!r}: it has to outlast the process. Pass the path of a file."
        )
    # Absolute, so that a later `chdir`, or a worker with another working directory, finds the same file.
    return url.set(drivername="sqlite", database=str(Path(database).expanduser().absolute()))


def public_url(url: sa.URL) -> str:
    """The URL without passwords."""
    secrets = [key for key in url.query if _is_secret(key)]
    return url.difference_update_query(secrets).render_as_string(hide_password=True)


def _is_secret(key: str) -> bool:
    """Whether a part of the query is one: libpq takes `password` and `sslpassword` there."""
    return "pass" in key or is_secret_name(key)


def open_engine(url: sa.URL) -> sa.Engine:
    """Connect, and create or migrate the schema.

    A transaction that will write has to be begun with the execution option `writes=True`.

    Args:
        url: From `parse_url`.

    Raises:
        LibraryDamagedError: The database is another application's.
        LibraryVersionError: A newer version of sirius_dspy wrote it.
        MissingDependencyError: psycopg is absent.
    """
    engine = _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgres_engine(url)
    try:
        _bring_up_to_date(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = Path(str(url.database))
    _check_is_ours(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = {} if "timeout" in url.query else {"timeout": LOCK_TIMEOUT_S}
    engine = sa.create_engine(url, hide_parameters=True, pool_timeout=LOCK_TIMEOUT_S, connect_args=timeout)
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _check_is_ours(path: Path) -> None:
    """Look at a file through a read-only connection, so that nothing of a file that is not ours changes.

    Raises:
        LibraryDamagedError: It is another application's.
        LibraryVersionError: It is of a newer version.
        DatabaseError: It is no database at all.
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
    connection.isolation_level = None  # the module's own idea of when a transaction begins; `_begin_sqlite` does it
    _use_log(connection)
    connection.execute("PRAGMA synchronous = FULL")  # rollouts are paid for: a commit also survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _use_log(connection: sqlite3.Connection) -> None:
    """Let readers and one writer work side by side; two processes may open a new file at once.

    SQLite itself does not wait for the lock that this change takes, where waiting could end in a deadlock.
    """
    patience = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
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
    # Unless the URL sets it, in `options`; PostgreSQL itself would wait for ever.
    given = "SELECT set_config('lock_timeout', %s, false) WHERE current_setting('lock_timeout') = '0'"
    connection.execute(given, [f"{LOCK_TIMEOUT_S:.0f}s"])
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


@contextmanager
def reporting(url: sa.URL) -> Iterator[None]:
    """Raise a `LibraryError` that says what to do for whatever the database raises."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
        raise _translate(redact_error(error), url) from error


def _translate(error: BaseException, url: sa.URL) -> LibraryError:
    words = _words(error, url)
    where = f"The library {public_url(url)!r}"
    is_database_error = isinstance(error, DBAPIError | sqlite3.Error)
    if isinstance(error, DataError | OverflowError) or (isinstance(error, StatementError) and not is_database_error):
        return LibraryError(f"{where} cannot hold a value: {words}. Names are strings, and integers have 64 bits.")
    for fragments, kind, advice in _ADVICE:
        if any(fragment in words.lower() for fragment in fragments):
            return kind(f"{where} {advice} ({words})")
    return LibraryError(
        f"{where} failed: {words}. All that was added before is safe. Make the database answer again, and run the "
        "same again: nothing is stored twice."
    )


def _words(error: BaseException, url: sa.URL) -> str:
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    words = " ".join(str(cause).split())
    secrets = [url.password, *(value for key, value in url.query.items() if _is_secret(key))]
    for secret in filter(None, secrets):
        words = words.replace(str(secret), "***")
    return words


_ADVICE: tuple[tuple[tuple[str, ...], type[LibraryError], str], ...] = (
    (
        ("not a database", "malformed"),
        LibraryDamagedError,
        "is not readable: it is no SQLite database, or is damaged or cut short. It was left as it is. Restore it from "
        "a backup, or move it away to begin a new one; if it still opens, `verify()` lists what is wrong.",
    ),
    (
        ("disk is full", "disk i/o error", "no space left"),
        LibraryError,
        "has no room to grow. All that was added before is safe. Free some space, and run the same again: nothing is "
        "stored twice.",
    ),
    (
        ("database is locked", "database table is locked", "lock timeout"),
        LibraryError,
        "is being written by another process, which did not finish in time. All that was added before is safe. Wait "
        "for it or stop it, and run the same again: nothing is stored twice.",
    ),
    (
        ("unable to open", "readonly"),
        LibraryError,
        "cannot be opened for writing. Check that the path is a file in a folder where you may write.",
    ),
    (
        ("foreign key",),
        LibraryError,
        "lacks a trajectory that a new row refers to. Add the failed trajectory before its repairs, and pass every "
        "replayed run to `add_repair`.",
    ),
)
"""What a message contains -> the error, and what it means."""
