"""Inserts rows into the tables, each only once; rows are never changed or deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from sirius_dspy.library.database import last_number
from sirius_dspy.library.rows import Row, attempt_rows, repair_row, step_rows, trajectory_row
from sirius_dspy.library.schema import (
    ATTEMPTS,
    EXAMPLES,
    REPAIRS,
    REQUESTS,
    STEPS,
    TRAJECTORIES,
    JsonSource,
    JsonText,
    NameText,
    escape_name,
    to_json,
)
from sirius_dspy.redact import hide
from sirius_dspy.trajectory import Repair, Trajectory

T = TypeVar("T")

BATCH = 500
"""Rows that a writer holds at a time."""

TRANSACTION = 5000
"""Trajectories per transaction of `add_all`. A page of an index that many of them change is written once for all."""


def split_batches(values: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Yield the values in lists of a size, the last one shorter."""
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def insert_examples(connection: sa.Connection, rows: Iterable[Row]) -> None:
    """Insert rows of examples; an example that holds a credential is left out."""
    # Its key is the hash of its content, so it is stored unchanged or not at all.
    _insert_all(connection, EXAMPLES, [row for row in rows if hide(row) is row])


def insert_trajectories(connection: sa.Connection, trajectories: Iterable[Trajectory]) -> int:
    """Insert trajectories with their steps and requests, and return how many were new.

    The transaction excludes other writers, so that what is not there now is new.
    """
    # Rows of a few at a time: Python's garbage collector takes long where many small objects are alive.
    return sum(_insert_batch(connection, batch) for batch in split_batches(trajectories))


def _insert_batch(connection: sa.Connection, trajectories: Sequence[Trajectory]) -> int:
    last = last_number(connection, TRAJECTORIES)
    _insert_all(connection, TRAJECTORIES, [trajectory_row(trajectory) for trajectory in trajectories])
    new = set(connection.scalars(sa.select(TRAJECTORIES.c.id).where(TRAJECTORIES.c.number > last)))
    given = {trajectory.id: trajectory for trajectory in reversed(trajectories)}  # the first of equal ones was inserted
    _insert_steps(connection, [trajectory for id, trajectory in given.items() if id in new])
    return len(new)


def _insert_steps(connection: sa.Connection, trajectories: Sequence[Trajectory]) -> None:
    rows = [row for trajectory in trajectories for row in step_rows(trajectory)]
    prompts = (step.prompt for trajectory in trajectories for step in trajectory.steps)
    requests = {row["request"]: prompt for row, prompt in zip(rows, prompts, strict=True) if prompt}
    _insert_all(connection, REQUESTS, [{"id": id, "prompt": JsonSource(text)} for id, text in requests.items()])
    _insert_all(connection, STEPS, rows)


def insert_repair(connection: sa.Connection, repair: Repair) -> None:
    """Insert a repair with its attempts."""
    if _insert(connection, REPAIRS, repair_row(repair)) and repair.attempts:
        connection.execute(ATTEMPTS.insert(), attempt_rows(repair))


def _insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, but those whose id is there.

    The values are converted here, because SQLAlchemy takes longer for that than the database for storing them.
    """
    if not rows:
        return
    names = tuple(rows[0])
    statement = _compile(connection.dialect.name, table, names)
    order = statement.positiontup or names
    columns = [_convert(table.c[name].type, [row[name] for row in rows]) for name in order]
    converted: list[Any] = list(zip(*columns, strict=True))
    if not statement.positional:
        converted = [dict(zip(names, row, strict=True)) for row in converted]
    connection.exec_driver_sql(str(statement), converted)


@cache
def _compile(dialect: str, table: sa.Table, names: tuple[str, ...]) -> SQLCompiler:
    # Not for the dialect of a connection, which would then live as long as the process.
    kind = sqlite.dialect() if dialect == "sqlite" else psycopg.dialect()
    return _insert_new(dialect, table).compile(dialect=kind, column_keys=names)


def _convert(kind: TypeEngine[Any], values: list[Any]) -> list[Any]:
    """Return the values of a column as the database takes them."""
    try:
        if isinstance(kind, JsonText):
            return [None if value is None else to_json(value) for value in values]
        if isinstance(kind, NameText):
            names = {value: None if value is None else escape_name(value) for value in set(values)}
            return [names[value] for value in values]
        return values
    except (TypeError, ValueError) as error:
        raise sa.exc.StatementError(str(error), None, None, error) from error


def _insert(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its id is there; return whether it was inserted."""
    statement = _insert_new(connection.dialect.name, table).execution_options(preserve_rowcount=True)
    return connection.execute(statement, row).rowcount == 1


@cache
def _insert_new(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing().inline()
