"""One cell of an experiment: a method with a seed, what it answered to every test example, and what that took."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from sirius_dspy.optimizer.spent import Spent

Status = Literal["finished", "budget", "failed"]


@dataclass(frozen=True)
class Outcome:
    """One test example."""

    example: str
    """Content key of the example; see `sirius_dspy.trajectory.example_key`."""
    group: str
    """Equal for examples that belong together, such as twins of one question."""
    reward: float
    right: bool
    """Whether the reward reached the threshold."""
    parsed: bool
    """Whether there was an answer that can be read at all."""
    answer: Any = None
    failure: str | None = None
    """Why the run raised, if it did."""


@dataclass(frozen=True)
class Cell:
    """A method with a seed.

    Attributes:
        method: Its name.
        seed: Of sampling and training.
        status: `finished`; `budget`, where the method wanted more LM calls than it may make, so that what it had by
            then was tested; or `failed`, where there was nothing to test.
        outcomes: One per test example, in the order of the test split.
        trained: What the method used until its program was ready, over all interruptions.
        tested: What testing used.
        measures: Further numbers of the test, as the recipe asks for.
        details: How the training went, where the method says.
        error: Why it failed, or what ended it.
    """

    method: str
    seed: int
    status: Status
    outcomes: tuple[Outcome, ...] = ()
    trained: Spent = field(default_factory=Spent)
    tested: Spent = field(default_factory=Spent)
    measures: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    ended_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def name(self) -> str:
        """Of the cell, unique in its experiment."""
        return f"{self.method} seed {self.seed}"

    @property
    def num_right(self) -> int:
        """Test examples answered right."""
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def num_unparsed(self) -> int:
        """Test examples without an answer that can be read."""
        return sum(not outcome.parsed for outcome in self.outcomes)

    @property
    def accuracy(self) -> float:
        """Share of the test examples answered right; a failed cell has none."""
        return self.num_right / len(self.outcomes)

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The cell that `to_plain` wrote.

        Raises:
            ValueError: It did not write this.
        """
        return TypeAdapter(cls).validate_json(json.dumps(plain))
