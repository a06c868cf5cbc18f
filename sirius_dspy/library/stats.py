"""What a library holds: trajectories by run, iteration and origin, and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sirius_dspy.library.rows import to_usage
from sirius_dspy.library.schema import METADATA, STEPS, TRAJECTORIES
from sirius_dspy.running.standing import Standing
from sirius_dspy.trajectory import Origin, Usage

_SIZES = ("page_count", "page_size")
"""SQLite's pragmas whose product is the size of the file."""

_GROUP = (TRAJECTORIES.c.run, TRAJECTORIES.c.iteration, TRAJECTORIES.c.origin)


@dataclass(frozen=True, slots=True)
class LibraryStats:
    """The trajectories of one origin that one iteration of one run added."""

    run: str
    iteration: int
    origin: Origin
    num_trajectories: int
    num_successes: int
    """Number of trajectories that ended with `reward >= threshold`."""
    mean_reward: float
    """A run that broke counts as the lowest reward of the group, and at most 0; see `sirius_dspy.running.standing`."""
    usage: Usage
    num_steps: Mapping[str, int]
    """Predictor name to its number of steps."""


def read_stats(connection: sa.Connection, threshold: float) -> tuple[LibraryStats, ...]:
    """Count what the library holds; a run succeeded if its reward is at least the threshold."""
    totals = connection.execute(_totals_query(threshold)).all()
    num_steps: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    for *group, predictor, number in connection.execute(_steps_query()):
        num_steps[tuple(group)][predictor] = number
    return tuple(_to_stats(row, num_steps[row.run, row.iteration, row.origin]) for row in totals)


def read_size(connection: sa.Connection) -> int:
    """Return the size of the library on disk in bytes, indexes included."""
    if connection.dialect.name == "sqlite":
        pages, page_size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in _SIZES)
        return int(pages * page_size)
    sizes = [sa.func.pg_total_relation_size(table.name) for table in METADATA.sorted_tables]
    return sum(map(int, connection.execute(sa.select(*sizes)).one()))


def _totals_query(threshold: float) -> sa.Select[Any]:
    columns = TRAJECTORIES.c
    is_success = sa.and_(columns.reward >= float(threshold), columns.failure.is_(None))
    reward = sa.case((columns.failure.is_(None), columns.reward))  # null, and so left out, where the run broke
    return (
        sa.select(
            *_GROUP,
            sa.func.count().label("number"),
            sa.func.sum(sa.case((is_success, 1), else_=0)).label("num_successes"),
            sa.func.count(reward).label("num_ended"),
            sa.func.sum(reward).label("total_reward"),
            sa.func.min(reward).label("lowest_reward"),
            *(sa.func.sum(columns[name]).label(name) for name in ("calls", "prompt_tokens", "completion_tokens")),
        )
        .group_by(*_GROUP)
        .order_by(sa.func.min(columns.number))
    )


def _steps_query() -> sa.Select[Any]:
    group = (*_GROUP, STEPS.c.predictor)
    joined = TRAJECTORIES.join(STEPS, STEPS.c.trajectory == TRAJECTORIES.c.id)
    return sa.select(*group, sa.func.count()).select_from(joined).group_by(*group)


def _to_stats(row: sa.Row[Any], num_steps: Mapping[str, int]) -> LibraryStats:
    broken = row.number - row.num_ended
    standing = Standing(row.num_ended, broken, float(row.total_reward or 0), float(row.lowest_reward or 0))
    return LibraryStats(
        run=row.run,
        iteration=row.iteration,
        origin=row.origin,
        num_trajectories=row.number,
        num_successes=int(row.num_successes),  # PostgreSQL sums integers to a Decimal
        mean_reward=standing.mean(),
        usage=to_usage(row._mapping),
        num_steps=dict(num_steps),
    )
