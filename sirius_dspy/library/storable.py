"""What goes into the library: without credentials, and only what reads back under its own id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.rows import Row, repair_id
from sirius_dspy.plain import digest
from sirius_dspy.redact import hide
from sirius_dspy.trajectory import Repair, Trajectory


def hide_trajectory(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory without credentials; the same object if it has none."""
    record = trajectory.to_dict()
    hidden = hide(record)
    return trajectory if hidden is record else Trajectory.from_dict(hidden)


def hide_repair(repair: Repair, ids: Mapping[str, str]) -> Repair:
    """Return the repair without credentials.

    Args:
        repair: All attempts at one failed trajectory.
        ids: Ids of its replayed runs as they were given, to the ids of the runs that are stored.
    """
    record = hide(repair.to_dict())
    attempts = [{**item, "trajectory": ids.get(item["trajectory"], item["trajectory"])} for item in record["attempts"]]
    return Repair.from_dict({**record, "attempts": attempts})


def check_all(trajectories: Iterable[Trajectory], examples: Iterable[Row]) -> None:
    """Refuse trajectories and rows of examples that would not read back under their ids.

    Raises:
        LibraryError: One holds a value that is not JSON, NaN, or a text that JSON changes.
    """
    for trajectory in trajectories:
        _check_trajectory(trajectory)
    for row in examples:
        _check_example(row)


def check_repair(repair: Repair) -> None:
    """Refuse a repair that would not read back under its id.

    Raises:
        LibraryError: As for `check_all`.
    """
    record = repair.to_dict()
    _check_record("repair", record, lambda record: repair_id(Repair.from_dict(record)), lambda: repair_id(repair))


def check_belongs(example: Row, trajectory: Trajectory) -> None:
    """Refuse the row of an example that the trajectory was not made from.

    Raises:
        LibraryError: The example has another key.
    """
    if example["key"] != trajectory.example_key:
        raise LibraryError(
            f"The example has the key {example['key']!r}, but the trajectory was made from "
            f"{trajectory.example_key!r}. Pass the example that the program ran on."
        )


def _check_trajectory(trajectory: Trajectory) -> None:
    record = trajectory.to_dict()
    _check_record("trajectory", record, lambda record: Trajectory.from_dict(record).id, lambda: trajectory.id)


def _check_example(row: Row) -> None:
    content = {name: row[name] for name in ("inputs", "labels")}
    _check_record("example", content, digest, lambda: str(row["key"]))


def _check_record(kind: str, record: Any, identify: Callable[[Any], str], id: Callable[[], str]) -> None:
    """Compare the id of a record that has been through JSON with the present one, which JSON may be unable to hold."""
    try:
        unchanged = identify(json.loads(json.dumps(record, allow_nan=False))) == id()
    except (TypeError, ValueError) as error:
        raise LibraryError(
            f"A {kind} holds a value that is not JSON: {error}. Convert its values with `to_plain`, and use finite "
            "numbers."
        ) from error
    if not unchanged:
        raise LibraryError(
            f"The {kind} {id()!r} would read back as another one, because JSON changes one of its texts: a surrogate "
            "pair is in two halves. Join them: `text.encode('utf-16', 'surrogatepass').decode('utf-16')`."
        )
