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

_IS_MARKED = TRAJECTORIES.c.id.in_(_MARKED)


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
    parents = sa.select(child.c.parent).where(child.c.parent.is_not(None), child.c.id.not_in(_MARKED))
    attempts = (
        sa.select(ATTEMPTS.c.trajectory)
        .join(REPAIRS, REPAIRS.c.id == ATTEMPTS.c.repair)
        .join(attempted, attempted.c.id == REPAIRS.c.parent)
        .where(ATTEMPTS.c.trajectory.is_not(None), attempted.c.id.not_in(_MARKED))
    )
    while sum(connection.execute(_MARKS.delete().where(_MARKS.c.id.in_(ids))).rowcount for ids in (parents, attempts)):
        pass


def mark_dependents(connection: sa.Connection) -> None:
    """Mark what cannot stand without a marked trajectory, or without one that is missing."""
    ids = sa.select(TRAJECTORIES.alias().c.id)
    orphans = sa.select(TRAJECTORIES.c.id).where(
        TRAJECTORIES.c.parent.is_not(None),
        TRAJECTORIES.c.parent.in_(_MARKED) | TRAJECTORIES.c.parent.not_in(ids),
        TRAJECTORIES.c.id.not_in(_MARKED),
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
    used, kept = (sa.select(TRAJECTORIES.c.example_key).where(is_meant) for is_meant in (_IS_MARKED, ~_IS_MARKED))
    examples = EXAMPLES.delete().where(EXAMPLES.c.key.in_(used), EXAMPLES.c.key.not_in(kept))
    num_examples = connection.execute(examples).rowcount
    connection.execute(STEPS.delete().where(STEPS.c.trajectory.in_(_MARKED)))
    trajectories = connection.execute(TRAJECTORIES.delete().where(_IS_MARKED)).rowcount
    sent = sa.select(STEPS.c.request).where(STEPS.c.request.is_not(None))
    requests = connection.execute(REQUESTS.delete().where(REQUESTS.c.id.not_in(sent))).rowcount
    connection.execute(sa.text("DROP INDEX steps_by_request"))
    return Removed(trajectories, len(gone), requests, num_examples)


_CHUNK = 500
"""Ids in one statement; SQLite takes 32,766 parameters at most."""
