"""Inserts rows into the tables, each only once; rows are never changed or deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
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
    for row in rows:
        if hide(row) is row:  # its key is the hash of its content, so it is stored unchanged or not at all
            _insert(connection, EXAMPLES, row)


def insert_trajectories(connection: sa.Connection, trajectories: Iterable[Trajectory]) -> int:
    """Insert trajectories with their steps and requests, and return how many were new."""
    return sum(_insert_trajectory(connection, trajectory) for trajectory in trajectories)


def insert_repair(connection: sa.Connection, repair: Repair) -> None:
    """Insert a repair with its attempts."""
    if _insert(connection, REPAIRS, repair_row(repair)) and repair.attempts:
        connection.execute(ATTEMPTS.insert(), attempt_rows(repair))


def _insert_trajectory(connection: sa.Connection, trajectory: Trajectory) -> bool:
    if not _insert(connection, TRAJECTORIES, trajectory_row(trajectory)):
        return False
    for id, prompt in {step.request: step.prompt for step in trajectory.steps if step.prompt}.items():
        _insert(connection, REQUESTS, {"id": id, "prompt": json.loads(str(prompt))})
    if trajectory.steps:
        connection.execute(STEPS.insert(), step_rows(trajectory))
    return True


def _insert(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its id is there; return whether it was inserted."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).on_conflict_do_nothing().inline().execution_options(preserve_rowcount=True)
    return connection.execute(statement, row).rowcount == 1
