"""What goes into the library: without credentials, and only what reads back under its own id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dspy
import orjson

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.rows import Row, example_row, repair_id
from sirius_dspy.library.schema import OWN_TYPES_ONLY
from sirius_dspy.plain import digest
from sirius_dspy.redact import hide, hides_in
from sirius_dspy.trajectory import Repair, Trajectory


def storable_trajectory(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory without credentials, the same object if it has none, if it would read back under its id.

    Raises:
        LibraryError: As for `example_rows`.
    """
    record = trajectory.to_dict()
    text = _same_json(record)
    hidden = hide(record) if text is None or hides_in(text) else record
    if hidden is not record:
        trajectory = Trajectory.from_dict(hidden)
        record, text = trajectory.to_dict(), None
    if text is None:
        _check_record("trajectory", record, lambda record: Trajectory.from_dict(record).id, lambda: trajectory.id)
    return trajectory


def _same_json(record: Any) -> bytes | None:
    """Return a JSON text that reads back as the same record, or `None` where a slower and closer look has to decide.

    Nearly all runs have one, and this takes a fifth of the time of Python's own `json`.
    """
    try:
        text = orjson.dumps(record, option=OWN_TYPES_ONLY)
    except TypeError:
        return None
    return text if orjson.loads(text) == record else None


def storable_run(trajectory: Trajectory, example: dspy.Example | None) -> tuple[Trajectory, list[Row]]:
    """Return what is stored of a trajectory and of the example it was made from.

    Raises:
        LibraryError: The example is another one than the trajectory's, or as for `example_rows`.
    """
    examples = [] if example is None else example_rows([example])
    for row in examples:
        _check_belongs(row, trajectory)
    return storable_trajectory(trajectory), examples


def split_storable(
    runs: Iterable[tuple[Trajectory, dspy.Example]],
) -> tuple[list[tuple[Trajectory, list[Row]]], list[LibraryError]]:
    """Return what is stored of some runs, and why others are not."""
    stored, refused = [], []
    for trajectory, example in runs:
        try:
            stored.append(storable_run(trajectory, example))
        except LibraryError as error:
            refused.append(error)
    return stored, refused


def example_rows(examples: Iterable[dspy.Example]) -> list[Row]:
    """Return the rows of examples that read back under their keys.

    Raises:
        LibraryError: One holds a value that is not JSON, NaN, or a text that JSON changes.
    """
    found = [example_row(example) for example in examples]
    for row in found:
        _check_example(row)
    return found


def hide_repair(repair: Repair, ids: Mapping[str, str]) -> Repair:
    """Return the repair without credentials.

    Args:
        repair: All attempts at one failed trajectory.
        ids: Ids of its replayed runs as they were given, to the ids of the runs that are stored.
    """
    record = hide(repair.to_dict())
    attempts = [{**item, "trajectory": ids.get(item["trajectory"], item["trajectory"])} for item in record["attempts"]]
    return Repair.from_dict({**record, "attempts": attempts})


def check_repair(repair: Repair) -> None:
    """Refuse a repair that would not read back under its id.

    Raises:
        LibraryError: As for `example_rows`.
    """
    record = repair.to_dict()
    _check_record("repair", record, lambda record: repair_id(Repair.from_dict(record)), lambda: repair_id(repair))


def _check_belongs(example: Row, trajectory: Trajectory) -> None:
    """Refuse the row of an example that the trajectory was not made from.

    Raises:
        LibraryError: The example has another key.
    """
    if example["key"] != trajectory.example_key:
        raise LibraryError(
            f"The example has the key {example['key']!r}, but the trajectory was made from "
            f"{trajectory.example_key!r}. Pass the example that the program ran on."
        )


def _check_example(row: Row) -> None:
    content = {name: row[name] for name in ("inputs", "labels")}
    _check_record("example", content, digest, lambda: str(row["key"]))


def _check_record(kind: str, record: Any, identify: Callable[[Any], str], id: Callable[[], str]) -> None:
    """Compare a record that has been through JSON with the present one, which JSON may be unable to hold.

    The ids decide, and are only made again where the records differ, for they take longer.
    """
    read = json.loads(_to_json(kind, record))
    if read != record and identify(read) != id():
        raise LibraryError(
            f"The {kind} {id()!r} would read back as another one, because JSON changes one of its texts: a surrogate "
            "pair is in two halves. Join them: `text.encode('utf-16', 'surrogatepass').decode('utf-16')`."
        )


def _to_json(kind: str, record: Any) -> str:
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LibraryError(
            f"A {kind} holds a value that is not JSON: {error}. Convert its values with `to_plain`, and use finite "
            "numbers."
        ) from error
