"""Deletes trajectories with all that hangs on them, and nothing that others need.

The ids are in a temporary table, since a library may have millions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from sirius_dspy.library.schema import ATTEMPTS, EXAMPLES, REPAIRS, REQUESTS, STEPS, TRAJECTORIES, NameText

_MARKS = sa.Table("marked", sa.MetaData(), sa.Column("id", NameText, primary_key=True), prefixes=["TEMPORARY"])
"""Trajectories that are to go."""

_MARKED = sa.select(_MARKS.c.id)


def _is_marked(id: sa.ColumnElement[str]) -> sa.Exists:
    """Return the condition that an id is marked; `NOT IN` would make PostgreSQL compare all with all."""
    marks = _MARKS.alias()
    return sa.exists().where(marks.c.id == id)


@dataclass(frozen=True)
class Removed:
    """How many rows went."""

    trajectories: int = 0
    repairs: int = 0
    requests: int = 0
    examples: int = 0


@contextmanager
def marking(connection: sa.Connection, ids: sa.Select[tuple[str]] | Iterable[str]) -> Iterator[None]:
    """Open the context in which trajectories are marked, by a query or one by one."""
    _MARKS.create(connection)
    try:
        if isinstance(ids, sa.Select):
            connection.execute(_MARKS.insert().from_select(["id"], ids))
        elif rows := [{"id": id} for id in ids]:
            connection.execute(_MARKS.insert(), rows)
        yield
    finally:
        _MARKS.drop(connection)


def spare_needed(connection: sa.Connection) -> None:
    """Take the marks off what others need: the run that a repair began with, and the runs that its attempts made."""
    child, attempted = TRAJECTORIES.alias(), TRAJECTORIES.alias()
    parents = sa.select(child.c.parent).where(child.c.parent.is_not(None), ~_is_marked(child.c.id))
    attempts = (
        sa.select(ATTEMPTS.c.trajectory)
        .join(REPAIRS, REPAIRS.c.id == ATTEMPTS.c.repair)
        .join(attempted, attempted.c.id == REPAIRS.c.parent)
        .where(ATTEMPTS.c.trajectory.is_not(None), ~_is_marked(attempted.c.id))
    )
    while sum(connection.execute(_MARKS.delete().where(_MARKS.c.id.in_(ids))).rowcount for ids in (parents, attempts)):
        pass


def mark_dependents(connection: sa.Connection) -> None:
    """Mark what cannot stand without a marked trajectory, or without one that is missing."""
    parent = TRAJECTORIES.alias()
    orphans = sa.select(TRAJECTORIES.c.id).where(
        TRAJECTORIES.c.parent.is_not(None),
        _is_marked(TRAJECTORIES.c.parent) | ~sa.exists().where(parent.c.id == TRAJECTORIES.c.parent),
        ~_is_marked(TRAJECTORIES.c.id),
    )
    while connection.execute(_MARKS.insert().from_select(["id"], orphans)).rowcount:
        pass


def remove_marked(connection: sa.Connection) -> Removed:
    """Delete what is marked, the repairs of it or with an attempt among it, and texts that nothing names any more."""
    # Each deleted request is looked for in the steps; PostgreSQL makes no index once a table has waiting triggers.
    connection.execute(sa.text("CREATE INDEX steps_by_request ON steps (request)"))
    broken = sa.select(ATTEMPTS.c.repair).where(ATTEMPTS.c.trajectory.in_(_MARKED))
    repairs = sa.select(REPAIRS.c.id).where(REPAIRS.c.parent.in_(_MARKED) | REPAIRS.c.id.in_(broken))
    gone = list(connection.scalars(repairs))
    for start in range(0, len(gone), _CHUNK):
        part = gone[start : start + _CHUNK]
        connection.execute(ATTEMPTS.delete().where(ATTEMPTS.c.repair.in_(part)))
        connection.execute(REPAIRS.delete().where(REPAIRS.c.id.in_(part)))
    run = TRAJECTORIES.alias()
    used, kept = (
        sa.exists().where(run.c.example_key == EXAMPLES.c.key, is_meant)
        for is_meant in (_is_marked(run.c.id), ~_is_marked(run.c.id))
    )
    examples = EXAMPLES.delete().where(used, ~kept)
    num_examples = connection.execute(examples).rowcount
    connection.execute(STEPS.delete().where(STEPS.c.trajectory.in_(_MARKED)))
    trajectories = connection.execute(TRAJECTORIES.delete().where(TRAJECTORIES.c.id.in_(_MARKED))).rowcount
    is_sent = sa.exists().where(STEPS.c.request == REQUESTS.c.id)
    requests = connection.execute(REQUESTS.delete().where(~is_sent)).rowcount
    if connection.dialect.name == "postgresql":
        # Checks the references now, and not at the end: each deleted request is looked for once more.
        connection.execute(sa.text("SET CONSTRAINTS ALL IMMEDIATE"))
    connection.execute(sa.text("DROP INDEX steps_by_request"))
    return Removed(trajectories, len(gone), requests, num_examples)


_CHUNK = 500
"""Ids in one statement; SQLite takes 32,766 parameters at most."""
