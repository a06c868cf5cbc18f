"""Makes a library smaller: deletes runs that nobody needs, and nothing that other runs need."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

import sqlalchemy as sa

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.engine import LOCK_TIMEOUT_S
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.queries import Filters, build_conditions
from sirius_dspy.library.removing import Removed, marking, remove_marked, spare_needed
from sirius_dspy.library.schema import TRAJECTORIES


def prune_library(
    library: ExperienceLibrary, *, before: datetime | None = None, dry_run: bool = False, **filters: Unpack[Filters]
) -> Removed:
    """Delete the trajectories that pass all filters, with their steps, repairs and examples.

    A run that others need stays, whatever the filters say: the failed run that a repair began with, and all runs of a
    repair of it. The file of a SQLite library shrinks. A compile that has not ended makes its deleted runs again when
    it is resumed; one that has ended keeps its results.

    Args:
        library: One that no compile is writing to.
        before: Only what was stored before this moment, which has a time zone.
        dry_run: Delete nothing, and return what would go.
        **filters: See `Filters`.

    Raises:
        LibraryError: There is no filter, `before` has no time zone, or the database failed.
    """
    database = library._database
    conditions = build_conditions(filters)
    if before is not None:
        if before.tzinfo is None:
            raise LibraryError("`before` has no time zone. Pass for example `datetime(2026, 1, 31, tzinfo=UTC)`.")
        conditions.append(TRAJECTORIES.c.created_at < before.astimezone(UTC).isoformat())
    if not conditions:
        raise LibraryError("Nothing says what to prune. Pass at least one filter, such as `run` or `origin`.")
    chosen = sa.select(TRAJECTORIES.c.id).where(*conditions)

    def work(connection: sa.Connection) -> Removed:
        with connection.begin_nested() as whole:
            with marking(connection, chosen):
                spare_needed(connection)
                removed = remove_marked(connection)
            if dry_run:
                whole.rollback()
        return removed

    removed = database.write(work)
    if not dry_run and database.file is not None:
        _shrink(database.file)
    return removed


def _shrink(file: Path) -> None:
    """Give the room of deleted rows back to the disk, also of an earlier call that could not."""
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_TIMEOUT_S, isolation_level=None)) as connection:
            if connection.execute("PRAGMA freelist_count").fetchone()[0]:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise LibraryError(
            f"The runs are deleted, but the file {str(file)!r} could not be made smaller: {error}. That needs as much "
            "free space as the file takes, and nobody else at work in it. Then run `prune` with the same filters again."
        ) from error
