"""Saves what can be read of a damaged SQLite library, in a new file. What is saved is whole: its hashes are right."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.database import Database
from sirius_dspy.library.queries import PAGE
from sirius_dspy.library.removing import mark_dependents, marking, remove_marked
from sirius_dspy.library.rows import load_repairs, load_trajectories, repair_id
from sirius_dspy.library.schema import ATTEMPTS, EXAMPLES, REPAIRS, STEPS, TRAJECTORIES
from sirius_dspy.library.verify import find_problems
from sirius_dspy.plain import digest

_FARTHEST = 1 << 40
"""How many row numbers are passed over at most while looking for the next row that can be read."""


@dataclass(frozen=True)
class Salvaged:
    """What was saved. Rows on pages that cannot be read are not counted as lost: nothing says how many there were."""

    trajectories: int
    repairs: int
    dropped: int
    """Trajectories that could be read, but not whole, or without the run that they depend on."""


def salvage_library(damaged: Path, out: Path) -> Salvaged:
    """Write what is whole in a damaged library into a new one with the same id, so that its compile can be resumed.

    Args:
        damaged: A SQLite file. It is left as it is.
        out: The new file.

    Raises:
        LibraryError: There is no such file, or `out` exists.
        LibraryDamagedError: Nothing can be read, or the file is none of a library.
    """
    if not damaged.is_file():
        raise LibraryError(f"There is no file {str(damaged)!r}. Pass the path of a SQLite library.")
    if out.exists():
        raise LibraryError(f"{str(out)!r} exists. Pass the path of a new file.")
    with TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as folder:
        copy, new = Path(folder) / "damaged.sqlite", Path(folder) / "new.sqlite"
        for end in ("", "-wal"):  # the log holds what was committed last
            if (part := damaged.with_name(damaged.name + end)).exists():
                shutil.copyfile(part, copy.with_name(copy.name + end))
        try:
            with closing(sqlite3.connect(copy)) as old, closing(sqlite3.connect(new)) as connection:
                _copy(old, connection)
        except sqlite3.DatabaseError as error:
            raise LibraryDamagedError(
                f"Nothing can be read of {str(damaged)!r}: {error}. Restore it from a backup."
            ) from error
        database = Database(new)
        try:
            salvaged = _keep_whole(database)
        finally:
            database.close()
        with closing(sqlite3.connect(new)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # all in one file
        new.rename(out)
    return salvaged


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Copy the tables, row by row where a page cannot be read; the schema is that of the old file."""
    old.execute("PRAGMA writable_schema = ON")  # or SQLite reads nothing of a file that was cut short
    entries = old.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    schema = [entry for entry in entries if not entry[1].startswith("sqlite_")]  # SQLite's own, as of ANALYZE
    if not {"meta", "trajectories", "steps"} <= {name for _, name, _ in schema}:
        raise sqlite3.DatabaseError("it has no tables of a library")
    for kind in ("table", "index"):
        for _, _, sql in (item for item in schema if item[0] == kind):
            new.execute(sql)
    for name in (name for kind, name, _ in schema if kind == "table"):
        for row in _read_rows(old, name):
            new.execute(f'INSERT OR IGNORE INTO "{name}" VALUES ({", ".join("?" * len(row))})', row)
    new.commit()


def _read_rows(connection: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table that can be read."""
    after, size = 0, PAGE
    while True:
        try:
            rows = _rows_after(connection, table, after, size)
        except sqlite3.DatabaseError:
            if size > 1:
                size = max(size // 4, 1)
                continue
            found = _next_readable(connection, table, after)
            if found is None:
                return
            after = found
            continue
        if not rows:
            return
        yield from (row[1:] for row in rows)
        after, size = rows[-1][0], PAGE


def _rows_after(connection: sqlite3.Connection, table: str, number: int, limit: int) -> list[tuple[Any, ...]]:
    query = f'SELECT rowid, * FROM "{table}" NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT ?'
    return connection.execute(query, (number, limit)).fetchall()


def _next_readable(connection: sqlite3.Connection, table: str, number: int) -> int | None:
    """Return the smallest number after which a row can be read, where none can directly after this one."""

    def is_readable(after: int) -> bool:
        try:
            _rows_after(connection, table, after, 1)
        except sqlite3.DatabaseError:
            return False
        return True

    step = 1
    while not is_readable(number + step):
        step *= 2
        if step > _FARTHEST:
            return None
    low, high = number + step // 2, number + step
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_readable(middle) else (middle, high)
    return high


def _keep_whole(database: Database) -> Salvaged:
    """Delete what is not whole, and count what is left."""
    with database.read() as connection:
        examples = _find_broken(connection, EXAMPLES, "key", _is_example)
        runs = _find_broken(connection, TRAJECTORIES, "id", _is_trajectory)

    def work(connection: sa.Connection) -> int:
        for key in examples:
            connection.execute(EXAMPLES.delete().where(EXAMPLES.c.key == key))
        with marking(connection, runs):
            mark_dependents(connection)
            removed = remove_marked(connection).trajectories
        _delete_strays(connection)
        return removed

    dropped = database.write(work)
    if problems := find_problems(database, None):
        raise LibraryDamagedError(f"What could be read is not whole: {problems[0]} Restore the library from a backup.")
    with database.read() as connection:
        numbers = [sa.select(sa.func.count()).select_from(table) for table in (TRAJECTORIES, REPAIRS)]
        trajectories, repairs = (int(connection.scalar(number) or 0) for number in numbers)
    return Salvaged(trajectories, repairs, dropped)


def _delete_strays(connection: sa.Connection) -> None:
    """Delete repairs that are not whole, and steps and attempts whose run or repair is gone."""
    runs, repairs = sa.select(TRAJECTORIES.c.id), sa.select(REPAIRS.c.id)
    lost = sa.select(ATTEMPTS.c.repair).where(ATTEMPTS.c.trajectory.is_not(None), ATTEMPTS.c.trajectory.not_in(runs))
    gone = {*connection.scalars(lost), *connection.scalars(repairs.where(REPAIRS.c.parent.not_in(runs)))}
    gone |= set(_find_broken(connection, REPAIRS, "id", _is_repair))
    for id in gone:
        connection.execute(ATTEMPTS.delete().where(ATTEMPTS.c.repair == id))
        connection.execute(REPAIRS.delete().where(REPAIRS.c.id == id))
    connection.execute(ATTEMPTS.delete().where(ATTEMPTS.c.repair.not_in(repairs)))
    connection.execute(STEPS.delete().where(STEPS.c.trajectory.not_in(runs)))


IsWhole = Callable[[sa.Connection, sa.Row[Any]], bool]


def _find_broken(connection: sa.Connection, table: sa.Table, id: str, is_whole: IsWhole) -> list[str]:
    """Return the ids of the rows that cannot be converted, or whose content has another hash."""

    def is_broken(key: str) -> bool:
        try:
            return not is_whole(connection, connection.execute(sa.select(table).where(table.c[id] == key)).one())
        except (ValueError, TypeError, KeyError):
            return True

    return [key for key in connection.scalars(sa.select(table.c[id])).all() if is_broken(key)]


def _is_example(_: sa.Connection, row: sa.Row[Any]) -> bool:
    return bool(digest({"inputs": row.inputs, "labels": row.labels}) == row.key)


def _is_trajectory(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    return bool(load_trajectories(connection, [row])[0].id == row.id)


def _is_repair(connection: sa.Connection, row: sa.Row[Any]) -> bool:
    return bool(repair_id(load_repairs(connection, [row])[0]) == row.id)
