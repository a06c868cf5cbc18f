"""One cell of an experiment: a method with a seed, its answers to all test examples, and its usage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import TypeAdapter

from sirius_dspy.optimizer.spent import Spent

CRITIC_DETAILS = ("rows", "tried", "repaired_before", "repaired", "kept")
"""What the details of a cell say about each fine-tuning of the critic, beside its iteration; see `CriticResult`."""

Status = Literal["finished", "budget", "failed"]


@dataclass(frozen=True)
class Outcome:
    """The result of one test example."""

    example: str
    """Content key of the example; see `sirius_dspy.trajectory.example_key`."""
    group: str
    """Equal for examples that belong together, such as variants of one question."""
    reward: float
    right: bool
    """Whether the reward reached the threshold."""
    parsed: bool
    """Whether the answer can be parsed."""
    answer: Any = None
    failure: str | None = None
    """The error of the run, if it raised."""


@dataclass(frozen=True)
class Cell:
    """A method with a seed.

    Attributes:
        method: Name of the method.
        seed: Seed of sampling and training.
        status: `finished`; `budget`, if the method reached its budget, so that its program at that time was tested; or
            `failed`, if there was nothing to test.
        outcomes: Results of the test examples, in the order of the test split.
        trained: Usage of the method until its program was ready, including interrupted attempts.
        tested: Usage of the test.
        measures: Further measurements of the test that the recipe requests.
        details: Details of the training, if the method has any.
        error: The error because of which it failed or ended early.
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
        """Name of the cell, unique in its experiment."""
        return f"{self.method} seed {self.seed}"

    @property
    def num_right(self) -> int:
        """Number of right answers."""
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def num_unparsed(self) -> int:
        """Number of answers that cannot be parsed."""
        return sum(not outcome.parsed for outcome in self.outcomes)

    @property
    def accuracy(self) -> float:
        """Share of right answers; undefined for a failed cell."""
        return self.num_right / len(self.outcomes)

    def to_plain(self) -> dict[str, Any]:
        """Return the cell as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Restore a cell from the result of `to_plain`.

        Raises:
            ValueError: The value is not such a result.
        """
        return TypeAdapter(cls).validate_json(json.dumps(plain))
