"""A set of content hashes on disk, for millions of them."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self

CACHE_KIB = 16 * 1024
"""Memory that the set takes, at most; a hash takes about 25 bytes of it."""


class DigestSet:
    """Content hashes in a temporary file, which goes when the set is closed.

    A `set` of a million such texts takes more than 100 MB.
    """

    def __init__(self) -> None:
        self._size = 0
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("CREATE TABLE digests (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, digest: str) -> bool:
        query = "SELECT 1 FROM digests WHERE digest = ?"
        return self._size > 0 and self._database.execute(query, (bytes.fromhex(digest),)).fetchone() is not None

    def add(self, digest: str) -> bool:
        """Add a hash of hex digits; return whether it is new."""
        insert = "INSERT OR IGNORE INTO digests VALUES (?)"
        is_new = self._database.execute(insert, (bytes.fromhex(digest),)).rowcount == 1
        self._size += is_new
        return is_new
