"""Inserts rows into the tables, each only once; rows are never changed or deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sirius_dspy.library.rows import Row, attempt_rows, repair_row, step_rows, trajectory_row
from sirius_dspy.library.schema import ATTEMPTS, EXAMPLES, REPAIRS, REQUESTS, STEPS, TRAJECTORIES
from sirius_dspy.redact import hide
from sirius_dspy.trajectory import Repair, Trajectory

T = TypeVar("T")

BATCH = 500
"""Trajectories per transaction of `add_all`; with one each, waiting for the disk takes most of the time."""


def split_batches(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield the values in lists of `BATCH`, the last one shorter."""
    remaining = iter(values)
    while batch := list(islice(remaining, BATCH)):
        yield batch


def insert_examples(connection: sa.Connection, rows: Iterable[Row]) -> None:
    """Insert rows of examples; an example that holds a credential is left out."""
    # Its key is the hash of its content, so it is stored unchanged or not at all.
    _insert_all(connection, EXAMPLES, [row for row in rows if hide(row) is row])


def insert_trajectories(connection: sa.Connection, trajectories: Iterable[Trajectory]) -> int:
    """Insert trajectories with their steps and requests, and return how many were new.

    The transaction excludes other writers, so that what is not there now is new.
    """
    given: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        given.setdefault(trajectory.id, trajectory)
    there = set(connection.scalars(sa.select(TRAJECTORIES.c.id).where(TRAJECTORIES.c.id.in_(given))))
    new = [trajectory for id, trajectory in given.items() if id not in there]
    steps = [step for trajectory in new for step in trajectory.steps]
    requests = {step.request: step.prompt for step in steps if step.prompt}
    rows = [{"id": id, "prompt": json.loads(str(prompt))} for id, prompt in requests.items()]
    _insert_all(connection, TRAJECTORIES, [trajectory_row(trajectory) for trajectory in new])
    _insert_all(connection, REQUESTS, rows)
    _insert_all(connection, STEPS, [row for trajectory in new for row in step_rows(trajectory)])
    return len(new)


def insert_repair(connection: sa.Connection, repair: Repair) -> None:
    """Insert a repair with its attempts."""
    if _insert(connection, REPAIRS, repair_row(repair)) and repair.attempts:
        connection.execute(ATTEMPTS.insert(), attempt_rows(repair))


def _insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, but those whose id is there."""
    if rows:
        connection.execute(_insert_new(connection.dialect.name, table), rows)


def _insert(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its id is there; return whether it was inserted."""
    statement = _insert_new(connection.dialect.name, table).execution_options(preserve_rowcount=True)
    return connection.execute(statement, row).rowcount == 1


@cache
def _insert_new(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing().inline()
