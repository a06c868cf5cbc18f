"""Finds what was changed or lost in a library: in the file itself, in its references, and by its content hashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from sirius_dspy.errors import LibraryDamagedError, LibraryError
from sirius_dspy.library.database import Database, last_number, read_library_id
from sirius_dspy.library.queries import PAGE, equal_columns
from sirius_dspy.library.rows import Rows, load_repairs, load_trajectories, repair_id
from sirius_dspy.library.schema import EXAMPLES, METADATA, REPAIRS, STEPS, TRAJECTORIES
from sirius_dspy.plain import digest, text_digest
from sirius_dspy.running.prompt import SentPrompt, row_id

RESTORE = "Restore it from a backup, or start again in another `run_dir`."


def find_problems(database: Database, run: str | None) -> list[str]:
    """Return the problems of a library as sentences.

    Args:
        database: The library's.
        run: Check the content hashes of this compile's rows only; `None` for all rows and examples.
    """
    checks: list[Callable[[Database], list[str]]] = [_check_file, _check_references, partial(_check_hashes, run=run)]
    if run is None:
        checks.insert(2, _check_examples)
    problems = [problem for check in checks for problem in _collect(database, check)]
    return list(dict.fromkeys(problems))


def _collect(database: Database, check: Callable[[Database], list[str]]) -> list[str]:
    try:
        return check(database)
    except LibraryDamagedError as error:
        return [str(error)]


def _check_file(database: Database) -> list[str]:
    if database.file is None:
        return []  # a server looks after its own files
    with database.read() as connection:
        results = connection.execute(sa.text("PRAGMA integrity_check")).scalars().all()
    return [f"SQLite: {result}" for result in results if result != "ok"]


def _check_references(database: Database) -> list[str]:
    keys = [key for table in METADATA.sorted_tables for key in table.foreign_keys]
    return [problem for key in keys for problem in _check_reference(database, key)]


def _check_reference(database: Database, key: sa.ForeignKey) -> list[str]:
    column: sa.Column[Any] = key.parent
    table, target = column.table.name, key.column.table
    other = target.alias()
    is_dangling = column.is_not(None) & ~sa.exists().where(other.c[key.column.name] == column)
    with database.read() as connection:
        missing = connection.scalars(sa.select(column).distinct().where(is_dangling)).all()
    return [f"`{table}.{column.name}` names {value!r}, which `{target.name}` does not have." for value in missing]


def _check_examples(database: Database) -> list[str]:
    with database.read() as connection:
        rows = connection.execution_options(yield_per=PAGE).execute(sa.select(EXAMPLES))
        changed = [row.key for row in rows if digest({"inputs": row.inputs, "labels": row.labels}) != row.key]
    return [f"The content of example {key!r} does not match its key." for key in changed]


def _check_hashes(database: Database, run: str | None) -> list[str]:
    """Compute the ids of trajectories and repairs again, and continue after rows that cannot be read."""
    problems = []
    for table in (TRAJECTORIES, REPAIRS):
        with database.read() as connection:
            last = last_number(connection, table)
        for first in range(1, last + 1, PAGE):
            problems += _check_rows(database, table, range(first, min(first + PAGE, last + 1)), run)
    return problems


def _check_rows(database: Database, table: sa.Table, numbers: range, run: str | None) -> list[str]:
    conditions = [table.c.number.between(numbers.start, numbers.stop - 1), *equal_columns(table, run=run)]
    try:
        with database.read() as connection:
            rows = connection.execute(sa.select(table).where(*conditions).order_by(table.c.number)).all()
            ids = _compute_ids(connection, table, rows)
    except LibraryDamagedError as error:
        if len(numbers) == 1:
            return [f"Row {numbers.start} of `{table.name}`: {error}"]
        middle = len(numbers) // 2  # one bad row must not hide the others of its page
        halves = (numbers[:middle], numbers[middle:])
        return [problem for half in halves for problem in _check_rows(database, table, half, run)]
    return [
        f"The content of {row.id!r} in `{table.name}` has the hash {id!r}: it was changed, or is not whole."
        for row, id in zip(rows, ids, strict=True)
        if id != row.id
    ]


def _compute_ids(connection: sa.Connection, table: sa.Table, rows: Rows) -> list[str]:
    """Return the ids that the content of the rows has now."""
    if table is REPAIRS:
        return [repair_id(repair) for repair in load_repairs(connection, rows)]
    return [trajectory.id for trajectory in load_trajectories(connection, rows)]


def find_row_problems(database: Database, path: Path) -> list[str]:
    """Return the problems of a file of training rows as sentences; see `ExperienceLibrary.verify_rows`."""
    rows, sources = _read_json_lines(path), _read_json_lines(path.with_suffix(".sources.jsonl"))
    if len(rows) != len(sources):
        return [f"{str(path)!r} has {len(rows)} rows, but its file of sources has {len(sources)}."]
    problems = [_find_row_problem(database, row, source) for row, source in zip(rows, sources, strict=True)]
    return [f"Row {number} of {str(path)!r} {problem}" for number, problem in enumerate(problems, start=1) if problem]


def _find_row_problem(database: Database, row: Any, source: Any) -> str:
    try:
        request = source["request"]
        if row_id(row) != source["row"]:
            return "is not the one that was written."
        if request and text_digest(SentPrompt.of_row(row).text) != request:
            return "has another prompt than the one that was sent."
        run = source["trajectory"]
        query = sa.select(STEPS.c.request).where(STEPS.c.trajectory == run, STEPS.c.predictor == source["predictor"])
    except (KeyError, TypeError, AttributeError) as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    with database.read() as connection:
        requests = set(connection.scalars(query))
    if not requests:
        return f"names the run {run!r}, which the library does not have."
    return "" if not request or request in requests else "has a prompt that was not sent in its run."


def _read_json_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise LibraryError(f"The training file {str(path)!r} cannot be read: {error}") from error


def check_library(database: Database, library_id: str, run: str) -> None:
    """Refuse to continue a compile with another library, or with a damaged one; see `ExperienceLibrary.check`."""
    if database.file is not None and not database.file.is_file():
        raise LibraryError(f"The library {database.public_url!r} that the compile started with is gone. {RESTORE}")
    check_not_empty(database)
    if (actual := read_library_id(database)) != library_id:
        raise LibraryError(
            f"The library {database.public_url!r} is not the one that the compile started with: its id is {actual!r}, "
            f"expected {library_id!r}, so the runs that were paid for are not in it. {RESTORE}"
        )
    if problems := find_problems(database, run):
        more = f" and {len(problems) - 1} more problems, which `verify()` lists" if len(problems) > 1 else ""
        raise LibraryDamagedError(f"The library {database.public_url!r} is damaged: {problems[0]}{more}. {RESTORE}")


def check_not_empty(database: Database) -> None:
    """Refuse a SQLite file that lost its content, which would be taken for a new library.

    Raises:
        LibraryDamagedError: The file is empty.
    """
    if database.file is not None and database.file.stat().st_size == 0:
        raise LibraryDamagedError(f"The library {database.public_url!r} is empty: its file lost its content. {RESTORE}")
