"""Trajectories, repairs, examples and unfinished runs as rows of the database, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Any

import dspy
import sqlalchemy as sa

from sirius_dspy.library.schema import ATTEMPTS, REQUESTS, STEPS, TRAJECTORIES
from sirius_dspy.plain import example_content
from sirius_dspy.running.unfinished import Unfinished
from sirius_dspy.trajectory import Attempt, Failure, Origin, Repair, Step, Trajectory, Usage, canonical, digest

Row = dict[str, Any]
"""Column name to value."""

Rows = Sequence[sa.Row[Any]]
"""Rows as the database returns them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A trajectory without its steps and per-agent rewards, for lists: reading it costs one row."""

    id: str
    run: str
    iteration: int
    sample: int
    origin: Origin
    parent: str | None
    edited: int | None
    example_key: str
    reward: float
    prediction: Any
    failure: Failure | None
    usage: Usage
    seconds: float

    def succeeded(self, threshold: float) -> bool:
        """Return whether the run ended with a reward of at least the threshold; a run that broke did not succeed."""
        return self.failure is None and self.reward >= threshold


# Fields that a column of the same name holds as they are.
_TRAJECTORY_FIELDS = (
    "example_key",
    "prediction",
    "program",
    "run",
    "iteration",
    "sample",
    "seed",
    "origin",
    "parent",
    "edited",
    "seconds",
)
_STEP_FIELDS = (
    "predictor",
    "occurrence",
    "inputs",
    "outputs",
    "lm",
    "source",
    "seconds",
    "started",
    "ended",
    "num_demos",
    "signature",
    "finish",
)
_ATTEMPT_FIELDS = (
    "position",
    "predictor",
    "verdict",
    "feedback",
    "regenerated",
    "rephrased",
    "reward",
    "trajectory",
    "detail",
    "rung",
    "reliance",
)


_ENTRY_FIELDS = (
    "id",
    "run",
    "iteration",
    "sample",
    "origin",
    "parent",
    "edited",
    "example_key",
    "prediction",
    "seconds",
)


# Values to rows


def repair_id(repair: Repair) -> str:
    """Return the content hash of a repair.

    Times, prices and measurements do not count; the rewards are those of the replayed runs, so the ids of the runs
    cover them.
    """
    names = [name for name in _ATTEMPT_FIELDS if name not in ("reward", "rung", "reliance")]
    attempts = [
        [*(getattr(attempt, name) for name in names), *([attempt.rung] if attempt.rung else [])]  # older ones have none
        for attempt in repair.attempts
    ]
    return digest([repair.parent, repair.run, repair.iteration, attempts])


def example_row(example: dspy.Example) -> Row:
    """Return the row of an example."""
    content = example_content(example)
    return {"key": digest(content), **content}


def trajectory_row(trajectory: Trajectory) -> Row:
    """Return the row of a trajectory, without its steps."""
    return {
        **_pick(trajectory, _TRAJECTORY_FIELDS),
        **trajectory.usage.to_dict(),
        "id": trajectory.id,
        "reward": float(trajectory.reward),
        "reward_json": trajectory.reward,
        "rewards": dict(trajectory.rewards),
        "failure": trajectory.failure and asdict(trajectory.failure),
        "created_at": trajectory.created_at.isoformat(),
    }


def step_rows(trajectory: Trajectory) -> list[Row]:
    """Return the rows of the steps of a trajectory."""
    return [
        {
            **_pick(step, _STEP_FIELDS),
            **step.usage.to_dict(),
            "trajectory": trajectory.id,
            "position": position,
            "others": list(step.others),
            "failure": step.failure and asdict(step.failure),
            "request": step.request,
        }
        for position, step in enumerate(trajectory.steps)
    ]


def repair_row(repair: Repair) -> Row:
    """Return the row of a repair, without its attempts."""
    return {"id": repair_id(repair), **_pick(repair, ("parent", "run", "iteration", "seconds"))}


def attempt_rows(repair: Repair) -> list[Row]:
    """Return the rows of the attempts of a repair."""
    id = repair_id(repair)
    return [
        {**_pick(attempt, _ATTEMPT_FIELDS), **asdict(attempt.usage), "repair": id, "number": number}
        for number, attempt in enumerate(repair.attempts)
    ]


def unfinished_row(unfinished: Unfinished) -> Row:
    """Return the row of a run that did not end."""
    return {**asdict(unfinished), "created_at": unfinished.created_at.isoformat()}


def _pick(value: Any, names: tuple[str, ...]) -> Row:
    return dict(zip(names, _getter(names)(value), strict=True))


@cache
def _getter(names: tuple[str, ...]) -> attrgetter[Any]:
    return attrgetter(*names)


# Rows to values


def load_trajectories(connection: sa.Connection, rows: Rows) -> list[Trajectory]:
    """Return the trajectories of some rows, with their steps."""
    joined = STEPS.outerjoin(REQUESTS, STEPS.c.request == REQUESTS.c.id)
    query = sa.select(STEPS, REQUESTS.c.prompt).select_from(joined)
    query = query.where(STEPS.c.trajectory.in_([row.id for row in rows]))
    steps: dict[str, list[Step]] = defaultdict(list)
    for row in connection.execute(query.order_by(STEPS.c.trajectory, STEPS.c.position)):
        steps[row.trajectory].append(_to_step(row._mapping))
    return [_to_trajectory(row._mapping, steps[row.id]) for row in rows]


def load_entries(connection: sa.Connection, rows: Rows) -> list[Entry]:
    """Return the trajectories of some rows without their steps."""
    return [
        Entry(
            **{name: row._mapping[name] for name in _ENTRY_FIELDS},
            reward=row.reward_json,
            failure=_to_failure(row.failure),
            usage=to_usage(row._mapping),
        )
        for row in rows
    ]


def load_pairs(connection: sa.Connection, rows: Rows) -> list[tuple[Trajectory, Trajectory]]:
    """Return each repaired trajectory of some rows after the failed one that it comes from."""
    parents = {row.parent for row in rows}
    parent_rows = connection.execute(sa.select(TRAJECTORIES).where(TRAJECTORIES.c.id.in_(parents))).all()
    failed = {trajectory.id: trajectory for trajectory in load_trajectories(connection, parent_rows)}
    repaired = load_trajectories(connection, rows)
    return [(failed[row.parent], trajectory) for row, trajectory in zip(rows, repaired, strict=True)]


def load_repairs(connection: sa.Connection, rows: Rows) -> list[Repair]:
    """Return the repairs of some rows, with their attempts."""
    query = sa.select(ATTEMPTS).where(ATTEMPTS.c.repair.in_([row.id for row in rows]))
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for row in connection.execute(query.order_by(ATTEMPTS.c.repair, ATTEMPTS.c.number)):
        attempts[row.repair].append(_to_attempt(row._mapping))
    return [Repair(row.parent, tuple(attempts[row.id]), row.run, row.iteration, row.seconds) for row in rows]


def load_unfinished(connection: sa.Connection, rows: Rows) -> list[Unfinished]:
    """Return the unfinished runs of some rows."""
    return [_to_unfinished(row._mapping) for row in rows]


def _to_unfinished(row: Mapping[Any, Any]) -> Unfinished:
    values = {name: value for name, value in row.items() if name != "number"}
    return Unfinished(**{**values, "created_at": datetime.fromisoformat(row["created_at"])})


def _to_trajectory(row: Mapping[Any, Any], steps: Sequence[Step]) -> Trajectory:
    return Trajectory(
        **{name: row[name] for name in _TRAJECTORY_FIELDS},
        steps=tuple(steps),
        reward=row["reward_json"],
        rewards=row["rewards"],
        failure=_to_failure(row["failure"]),
        created_at=datetime.fromisoformat(row["created_at"]),
    )


def _to_step(row: Mapping[Any, Any]) -> Step:
    return Step(
        **{name: row[name] for name in _STEP_FIELDS},
        others=tuple(row["others"]),
        prompt=row["prompt"] and canonical(row["prompt"]),
        failure=_to_failure(row["failure"]),
        usage=to_usage(row),
    )


def _to_attempt(row: Mapping[Any, Any]) -> Attempt:
    return Attempt(**{name: row[name] for name in _ATTEMPT_FIELDS}, usage=to_usage(row))


def _to_failure(record: Mapping[str, Any] | None) -> Failure | None:
    return None if record is None else Failure(**record)


def to_usage(row: Mapping[Any, Any]) -> Usage:
    """Return the usage in the columns of a row; PostgreSQL sums integers to a `Decimal`."""
    return Usage(int(row["calls"]), int(row["prompt_tokens"]), int(row["completion_tokens"]))
