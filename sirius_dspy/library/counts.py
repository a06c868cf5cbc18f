"""What one compile has in a library, counted by the database: cheap enough to ask each second while it works."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.schema import ATTEMPTS, REPAIRS, TRAJECTORIES


@dataclass(frozen=True, slots=True)
class RunCount:
    """The runs of one origin in one iteration."""

    iteration: int
    origin: str
    runs: int
    succeeded: int


@dataclass(frozen=True, slots=True)
class RepairCount:
    """The attempts of one rung of a ladder, or of an augmenter that stands alone, in one iteration."""

    iteration: int
    rung: str
    """Empty without a ladder."""
    runs: int
    """Failed runs that were tried."""
    verdicts: Mapping[str, int]
    """Verdict to number of attempts."""


def count_runs(library: ExperienceLibrary, run: str, threshold: float) -> tuple[RunCount, ...]:
    """Count the runs of a compile by iteration and origin, in the order in which they began.

    Args:
        library: Where they are.
        run: Id of the compile.
        threshold: Least reward of a success.
    """
    columns = TRAJECTORIES.c
    succeeded = sa.and_(columns.reward >= float(threshold), columns.failure.is_(None))
    query = (
        sa.select(columns.iteration, columns.origin, sa.func.count(), sa.func.sum(sa.case((succeeded, 1), else_=0)))
        .where(columns.run == run)
        .group_by(columns.iteration, columns.origin)
        .order_by(columns.iteration, sa.func.min(columns.number))
    )
    with library._database.read() as connection:
        return tuple(
            RunCount(iteration, origin, runs, int(good)) for iteration, origin, runs, good in _all(connection, query)
        )


def count_repairs(library: ExperienceLibrary, run: str) -> tuple[RepairCount, ...]:
    """Count the attempts at repair of a compile by iteration and rung, in the order in which the rungs began."""
    joined = REPAIRS.join(ATTEMPTS, ATTEMPTS.c.repair == REPAIRS.c.id)
    group = (REPAIRS.c.iteration, ATTEMPTS.c.rung)
    place = sa.func.min(ATTEMPTS.c.number)
    tried = sa.select(*group, sa.func.count(REPAIRS.c.parent.distinct())).select_from(joined).group_by(*group)
    verdicts = sa.select(*group, ATTEMPTS.c.verdict, sa.func.count()).select_from(joined)
    found: dict[tuple[int, str | None], dict[str, int]] = defaultdict(dict)
    with library._database.read() as connection:
        rows = _all(connection, tried.where(REPAIRS.c.run == run).order_by(REPAIRS.c.iteration, place))
        by_verdict = verdicts.where(REPAIRS.c.run == run).group_by(*group, ATTEMPTS.c.verdict)
        for iteration, rung, verdict, number in _all(connection, by_verdict):
            found[iteration, rung][verdict] = number
    return tuple(RepairCount(iteration, rung or "", runs, found[iteration, rung]) for iteration, rung, runs in rows)


def last_ids(library: ExperienceLibrary, run: str, number: int) -> list[str]:
    """Return the ids of the runs of a compile that were added last, the newest first."""
    query = (
        sa.select(TRAJECTORIES.c.id)
        .where(TRAJECTORIES.c.run == run)
        .order_by(TRAJECTORIES.c.number.desc())
        .limit(number)
    )
    with library._database.read() as connection:
        return list(connection.execute(query).scalars())


def _all(connection: sa.Connection, query: sa.Select[Any]) -> list[Any]:
    return list(connection.execute(query).all())
