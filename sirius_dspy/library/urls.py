"""The URL of an experience library: its one form, and the form without passwords."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from sirius_dspy.credentials import is_secret_name
from sirius_dspy.errors import LibraryError


def parse_url(url: str | Path | sa.URL) -> sa.URL:
    """Return the one form of a library's URL: SQLite with an absolute path, or PostgreSQL with the psycopg driver.

    Raises:
        LibraryError: It is not a URL, belongs to another database system, or names a database in memory.
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
    """Return the URL without its passwords."""
    secrets = [key for key in url.query if _is_secret(key)]
    return url.difference_update_query(secrets).render_as_string(hide_password=True)


def secrets_of(url: sa.URL) -> list[str]:
    """Return the passwords that a URL holds."""
    secrets = [url.password, *(value for key, value in url.query.items() if _is_secret(key))]
    return [str(secret) for secret in secrets if secret]


def sqlite_file(url: sa.URL) -> Path | None:
    """Return the file of a SQLite library; `None` for another database."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def _is_secret(key: str) -> bool:
    """Return whether a parameter of the query is a password: libpq takes `password` and `sslpassword` there."""
    return "pass" in key or is_secret_name(key)
