"""Which trajectories a reader asks for, and reading them page by page."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import sqlalchemy as sa

from sirius_dspy.library.database import Database, last_number
from sirius_dspy.library.rows import Rows
from sirius_dspy.library.schema import STEPS, TRAJECTORIES, escape_name
from sirius_dspy.trajectory import Origin

T = TypeVar("T")

Condition = sa.ColumnElement[bool]

PAGE = 100
"""Rows read at a time: the most trajectories that a reader holds in memory."""


class Filters(TypedDict, total=False):
    """Selects trajectories that pass every filter given; `None` is the same as not given."""

    run: str | None
    iteration: int | None
    origin: Origin | Collection[Origin] | None
    """One origin, or any of several."""
    example_key: str | None
    min_reward: float | None
    """The run ended with a reward of at least this: C(n) of the paper is `min_reward=threshold`."""
    max_reward: float | None
    """The reward is at most this."""
    below: float | None
    """The run ended with a reward below this, or broke: `below=threshold` selects the failed runs."""
    predictor: str | Collection[str] | None
    """The run called this predictor, or any of several."""
    program: str | None
    parent: str | None
    """Id of the failed trajectory: selects its repairs."""
    sample: int | None


def build_conditions(filters: Filters) -> list[Condition]:
    """Return the conditions that the filters set.

    Raises:
        TypeError: There is no such filter.
    """
    if unknown := filters.keys() - Filters.__annotations__.keys():
        raise TypeError(f"Unknown filters {sorted(unknown)!r}. Expected some of {list(Filters.__annotations__)!r}.")
    return [_condition(name, value) for name, value in filters.items() if value is not None]


def _condition(name: str, value: Any) -> Condition:
    build = _CONDITIONS.get(name)
    return TRAJECTORIES.c[name] == value if build is None else build(value)


def _has_reached(reward: float) -> Condition:
    return sa.and_(TRAJECTORIES.c.reward >= float(reward), TRAJECTORIES.c.failure.is_(None))


def _is_at_most(reward: float) -> Condition:
    return TRAJECTORIES.c.reward <= float(reward)


def _is_below(reward: float) -> Condition:
    return sa.or_(TRAJECTORIES.c.reward < float(reward), TRAJECTORIES.c.failure.is_not(None))


def _has_called(predictor: str | Collection[str]) -> Condition:
    names = [predictor] if isinstance(predictor, str) else list(predictor)
    return sa.exists().where(STEPS.c.trajectory == TRAJECTORIES.c.id, STEPS.c.predictor.in_(names))


def _has_origin(origin: str | Collection[str]) -> Condition:
    return TRAJECTORIES.c.origin.in_([origin] if isinstance(origin, str) else list(origin))


_CONDITIONS: Mapping[str, Callable[[Any], Condition]] = {
    "min_reward": _has_reached,
    "max_reward": _is_at_most,
    "below": _is_below,
    "predictor": _has_called,
    "origin": _has_origin,
}
"""Filters that are more than the equality of a column."""


def equal_columns(table: sa.Table, **values: Any) -> list[Condition]:
    """Return conditions that columns equal the values that are not `None`."""
    return [table.c[name] == value for name, value in values.items() if value is not None]


def has_failed_parent(threshold: float) -> Condition:
    """Return the condition that the trajectory comes from one that did not reach the threshold."""
    parent = TRAJECTORIES.alias()
    is_failure = sa.or_(parent.c.reward < float(threshold), parent.c.failure.is_not(None))
    return sa.exists().where(parent.c.id == TRAJECTORIES.c.parent, is_failure)


def find_ids(connection: sa.Connection, prefix: str, limit: int) -> list[str]:
    """Return the ids of trajectories that begin with a prefix, sorted, at most `limit` of them."""
    stored = escape_name(prefix)
    begins_so = sa.func.substr(sa.cast(TRAJECTORIES.c.id, sa.Text), 1, len(stored)) == stored
    query = sa.select(TRAJECTORIES.c.id).where(begins_so).order_by(TRAJECTORIES.c.id).limit(limit)
    return list(connection.execute(query).scalars())


def stream(
    database: Database,
    table: sa.Table,
    conditions: Sequence[Condition],
    load: Callable[[sa.Connection, Rows], list[T]],
    *,
    skip: int = 0,
) -> Iterator[T]:
    """Read a table page by page, each page in a transaction of its own.

    One long transaction would keep SQLite from ever shrinking its write-ahead log, and a reader that is left half way
    would keep a connection. To continue after the last number read costs the same on every page, unlike OFFSET.

    Args:
        database: The library's.
        table: One whose rows are numbered.
        conditions: All of them must hold.
        load: Converts a page of rows to values.
        skip: Number of matches to leave out at the start.
    """
    with database.read() as connection:
        last = last_number(connection, table)
        number = _number_before(connection, table, conditions, skip) if skip else 0
    full = True
    while full:
        page = sa.select(table).where(table.c.number > number, table.c.number <= last, *conditions)
        with database.read() as connection:
            rows = connection.execute(page.order_by(table.c.number).limit(PAGE)).all()
            values = load(connection, rows)
        yield from values
        full = len(rows) == PAGE
        number = rows[-1].number if rows else last


def _number_before(connection: sa.Connection, table: sa.Table, conditions: Sequence[Condition], skip: int) -> int:
    """Return the number of the last of `skip` matches; the last number of all if there are fewer."""
    query = sa.select(table.c.number).where(*conditions).order_by(table.c.number).offset(skip - 1).limit(1)
    number = connection.scalar(query)
    return last_number(connection, table) if number is None else int(number)
