"""What the files of a run directory hold, spelled out so that a damaged one is noticed before anything relies on it.

Only what is read is spelled out; files may hold more. Values are checked and never converted.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)]


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


class AgentEntry(Record):
    """What an iteration did with one agent."""

    rows: Count = 0
    dropped: dict[str, Count] = {}
    losses: list[float] = []
    lm: str | None = None
    base: str | None = None
    seconds: float = 0.0


class RepairEntry(Record):
    """How repair went."""

    tried: Count = 0
    repaired: Count = 0
    verdicts: dict[str, Count] = {}
    by_agent: dict[str, dict[str, Count]] = {}
    calls: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Entry(Record):
    """An item of `detailed_results["iterations"]`; 0 is the student as given."""

    iteration: Count
    score: Finite
    num_val: Count
    lms: dict[str, str]
    promoted: dict[str, bool] = {}
    metrics: dict[str, float] = {}
    agents: dict[str, AgentEntry] = {}
    repair: RepairEntry = RepairEntry()
    seconds: dict[str, float] = {}
    usage: dict[str, Count] = {}


class Iteration(Entry):
    """`stages/iteration-N.json`: an iteration that finished."""

    metrics: dict[str, float]
    chosen_in_forward: dict[str, list[str]]
    """Predictor name to the LMs that `forward` chose for it."""


class Results(Record):
    """`stages/results.json`: `detailed_results` of a compile that finished."""

    run: str
    library: str
    agents: dict[str, list[str]]
    threshold: Finite
    iterations: list[Entry]
    best_iteration: Count
    best_score: Finite


class Tested(Record):
    """One program of a test."""

    program: str
    score: Finite
    interval: Interval | None = None
    num_examples: Count


class Test(Record):
    """`stages/test.json`: scores on examples that the compile never saw, where somebody measured them."""

    programs: list[Tested] = []


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
        if record[name] != value:
            raise ValueError(f"`{name}` is {record[name]!r}, expected {value!r}")
    return record
