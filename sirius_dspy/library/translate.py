"""Turns whatever the database raises into a `LibraryError` that says what to do. No message holds a password."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError

from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.urls import public_url, secrets_of
from sirius_dspy.redact import redact_error


@contextmanager
def translate_errors(url: sa.URL) -> Iterator[None]:
    """Raise a `LibraryError` for any error of the database."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
        raise _translate(redact_error(error), url) from error


def _translate(error: BaseException, url: sa.URL) -> LibraryError:
    cause = _cause(error, url)
    where = f"The library {public_url(url)!r}"
    is_database_error = isinstance(error, DBAPIError | sqlite3.Error)
    if isinstance(error, DataError | OverflowError) or (isinstance(error, StatementError) and not is_database_error):
        return LibraryError(f"{where} cannot hold a value: {cause}. Names are strings, and integers have 64 bits.")
    for fragments, kind, advice in _ADVICE:
        if any(fragment in cause.lower() for fragment in fragments):
            return kind(f"{where} {advice} ({cause})")
    return LibraryError(
        f"{where} failed: {cause}. All that was added before is safe. Make the database available, then run "
        "the same again: nothing is stored twice."
    )


def _cause(error: BaseException, url: sa.URL) -> str:
    """Return the driver's own message, on one line and without passwords."""
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    text = " ".join(str(cause).split())
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text


_ADVICE: tuple[tuple[tuple[str, ...], type[LibraryError], str], ...] = (
    (
        ("not a database", "malformed"),
        LibraryDamagedError,
        "cannot be read: it is not a SQLite database, or it is damaged or cut short. It was left as it is. Restore it "
        "from a backup, or move it away to start a new one; if it still opens, `verify()` lists what is wrong.",
    ),
    (
        ("disk is full", "disk i/o error", "no space left"),
        LibraryError,
        "has no room to grow. All that was added before is safe. Free some space, then run the same again: nothing is "
        "stored twice.",
    ),
    (
        ("database is locked", "database table is locked", "lock timeout"),
        LibraryError,
        "is locked by another process, which did not finish in time. All that was added before is safe. Wait "
        "for it or stop it, then run the same again: nothing is stored twice.",
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
"""Parts of the driver's message, the error to raise, and its message."""
