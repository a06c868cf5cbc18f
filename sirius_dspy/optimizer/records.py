"""What the files of a run directory hold, spelled out so that a damaged one is noticed before anything relies on it.

Only what is read is spelled out; files may hold more. Values are checked and never converted.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

COUNT_LIMIT = 1 << 63
"""Counts are smaller; larger numbers come from damaged files, and overflow in means."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=COUNT_LIMIT)]


class Record(BaseModel, extra="allow", strict=True):
    """A JSON object; each file is one of the kinds below, or any object at all."""


class LibraryRecord(Record):
    """`library.json`: the library that the compile began with."""

    library_id: str
    url: str
    """Without its password."""


class Settings(Record):
    """The settings that a report shows."""

    seed: int
    threshold: Finite


class Identity(Record):
    """`run.json`: what makes two compiles the same."""

    agents: dict[str, list[str]]
    adapter: str
    settings: Settings


class Job(Record):
    """`stages/train-N-AGENT.json`: a fine-tuning job that finished."""

    agent: str
    iteration: Count
    lm: str
    base: str
    rows: Count
    losses: list[float]
    seconds: float
    tokens: Count = 0
    """Tokens that a server charges for, over all epochs; 0 on this machine."""
    usd: Finite | None = 0.0
    """US dollars for them; `None` if the price was unknown."""


class CriticTrial(Record):
    """`stages/critic-N.json`: the comparison of a fine-tuned critic with the one before, as far as it came."""

    repaired: dict[str, bool]
    """Id of a failed run to whether the new critic repaired it."""
    num_before: Count | None = None
    """How many of them the critic before repaired; `None` until all are compared."""


class Spending(Record):
    """`stages/spending.json`: what was spent so far."""

    calls: dict[str, dict[str, Annotated[list[Count], Field(min_length=3, max_length=3)]]]
    """`ITERATION/STAGE` to LM id to calls, prompt tokens and completion tokens."""
    seconds: dict[str, float]
    """`ITERATION/STAGE` to wall time."""


class Row(Record):
    """A line of a training file."""

    messages: list[dict[str, Any]]


def read_record(text: str, shape: type[Record] = Record, **expected: Any) -> dict[str, Any]:
    """Parse a JSON object, and check that it is of a shape.

    Args:
        text: As it was read.
        shape: What the object has to be.
        **expected: Fields that must have exactly these values.

    Raises:
        ValueError: It is no JSON object, or of another shape; the message says where.
    """
    if not text.strip():
        raise ValueError("it is empty")
    try:
        record: dict[str, Any] = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, expected an object")
    try:
        shape.model_validate(record)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise ValueError(f"`{'.'.join(map(str, found['loc']))}`: {found['msg']}") from error
    for name, value in expected.items():
        if record.get(name) != value:
            raise ValueError(f"`{name}` is {record.get(name)!r}, expected {value!r}")
    return record
