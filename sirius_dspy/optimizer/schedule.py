"""Schedules: which examples of the trainset are run in each iteration, and in which order.

References:
    AdaSTaR (arXiv:2505.16322): of the examples, those that were least trained on come first, and of these the hardest;
    sampling every example equally often trains easy ones ten times and hard ones once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.trajectory import canonical, to_plain


@dataclass(frozen=True)
class ExampleRecord:
    """What a compile knows of one example from the iterations that have finished.

    Attributes:
        runs: Runs of the program on it that were collected; repairs do not count.
        successes: How many of them reached the threshold.
        times_trained: Iterations in which a run or a repair of it gave a step to train on.
        steps: Mean number of steps of its runs; 0 without any.
    """

    runs: int = 0
    successes: int = 0
    times_trained: int = 0
    steps: float = 0.0

    @property
    def success_rate(self) -> float | None:
        """Share of the runs that succeeded; `None` without any."""
        return self.successes / self.runs if self.runs else None


Examples = Mapping[str, dspy.Example]
"""Content key to example."""


class Schedule(ABC):
    """Chooses the examples that an iteration runs. Subclass it and define `choose`."""

    @abstractmethod
    def choose(
        self,
        examples: Examples,
        records: Mapping[str, ExampleRecord],
        iteration: int,
        iterations: int,
    ) -> Sequence[str]:
        """Choose the examples to run, in the order in which they are started.

        A resumed compile chooses again and must get the same examples, so the choice must depend on nothing but the
        arguments, and not on the order of `examples`, which the user may change. Examples that are not chosen count
        neither as failed nor as solved.

        Args:
            examples: The distinct examples of the trainset by content key, in their order.
            records: The record of each of them, from the iterations before this one.
            iteration: Number of the iteration, from 1.
            iterations: Number of iterations of the compile. It changes if a finished compile is prolonged.

        Returns:
            Keys out of `examples`, at least one, and none twice.
        """

    def check(self) -> None:
        """Refuse settings of the wrong kind before anything is paid for; a schedule without settings needs none.

        Raises:
            SettingsError: The message names the setting.
        """

    def num_chosen(self, num_examples: int, iteration: int) -> int:
        """Return the most examples that `choose` returns, for a plan; here all of them.

        Args:
            num_examples: Distinct examples of the trainset.
            iteration: Number of the iteration, from 1.
        """
        return num_examples


Difficulty = Callable[[dspy.Example], float]
"""How hard an example is: any finite number, larger for harder examples."""


@dataclass(frozen=True)
class EasyToHard(Schedule):
    """Runs the easiest examples first, and more of them in each iteration.

    A success on a short example proves more than one on a long example, where a chain of wrong steps may end right by
    chance; what was learned from short ones makes the steps of longer ones right.

    Attributes:
        difficulty: How hard an example is, such as `lambda example: len(example.events)`. By default, examples that
            were run before come first, those that succeed most often ahead; all others follow by the length of their
            inputs in characters.
        shares: Share of the examples that each iteration runs, none smaller than the one before. The last one holds for
            all later iterations.
    """

    difficulty: Difficulty | None = None
    shares: Sequence[float] = (0.34, 0.67, 1.0)

    def choose(
        self,
        examples: Examples,
        records: Mapping[str, ExampleRecord],
        iteration: int,
        iterations: int,
    ) -> Sequence[str]:
        """See `Schedule.choose`.

        Raises:
            SettingsError: `difficulty` did not return a finite number.
        """
        ranks: dict[str, tuple[float, ...]]
        if self.difficulty is None:
            ranks = {key: _default_rank(example, records[key]) for key, example in examples.items()}
        else:
            ranks = {key: (_checked_difficulty(self.difficulty, example),) for key, example in examples.items()}
        return sorted(examples, key=lambda key: (ranks[key], key))[: self.num_chosen(len(examples), iteration)]

    def check(self) -> None:
        """See `Schedule.check`."""
        kinds = {"difficulty": checks.optional(_DIFFICULTY), "shares": _SHARES}
        checks.check("EasyToHard", vars(self), kinds)

    def num_chosen(self, num_examples: int, iteration: int) -> int:
        """See `Schedule.num_chosen`."""
        share = self.shares[min(iteration, len(self.shares)) - 1]
        return max(1, round(share * num_examples))


@dataclass(frozen=True)
class LeastTrainedFirst(Schedule):
    """Runs the examples that gave training rows least often, and of these the hardest.

    Attributes:
        max_examples: Examples that are run in one iteration.
        max_hopeless: Share of these places for examples that were run before and never gave a row, as long as there are
            others. Without a limit, examples that are too hard would take all places in every iteration.

    References:
        AdaSTaR (arXiv:2505.16322), which eases its order while the model is weak; here `max_hopeless` does so.
    """

    max_examples: int
    max_hopeless: float = 0.5

    def choose(
        self,
        examples: Examples,
        records: Mapping[str, ExampleRecord],
        iteration: int,
        iterations: int,
    ) -> Sequence[str]:
        """See `Schedule.choose`."""
        ordered = sorted(examples, key=lambda key: (_training_rank(records[key]), key))
        number = self.num_chosen(len(ordered), iteration)
        hopeless = [key for key in ordered if records[key].runs and not records[key].times_trained]
        others = [key for key in ordered if key not in set(hopeless)]
        places = max(math.floor(self.max_hopeless * number), number - len(others))
        chosen = {*hopeless[:places], *others[: number - min(places, len(hopeless))]}
        return [key for key in ordered if key in chosen]

    def check(self) -> None:
        """See `Schedule.check`."""
        kinds = {"max_examples": checks.whole(1), "max_hopeless": _FRACTION}
        checks.check("LeastTrainedFirst", vars(self), kinds)

    def num_chosen(self, num_examples: int, iteration: int) -> int:
        """See `Schedule.num_chosen`."""
        return min(self.max_examples, num_examples)


def choose_examples(
    schedule: Schedule,
    examples: Examples,
    records: Mapping[str, ExampleRecord],
    iteration: int,
    iterations: int,
) -> Examples:
    """Let a schedule choose, and check what it returned.

    Raises:
        SettingsError: It is no list of keys of the examples, is empty, or names an example twice.
    """
    keys = schedule.choose(examples, records, iteration, iterations)
    if problem := _find_problem(keys, examples):
        raise SettingsError(
            f"`choose` of the schedule {type(schedule).__name__} returned {problem} in iteration {iteration}, expected "
            "a list of keys out of `examples`, at least one, and none twice."
        )
    return {key: examples[key] for key in keys}


def _find_problem(keys: Any, examples: Examples) -> str:
    """Return what is wrong with the choice; empty if nothing is."""
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        return checks.describe_value(keys)
    if unknown := [key for key in keys if key not in examples]:
        return f"the unknown key {unknown[0]!r}"
    if len(set(keys)) < len(keys):
        return f"{len(keys)} keys of {len(set(keys))} examples"
    return "" if keys else "no example"


def _default_rank(example: dspy.Example, record: ExampleRecord) -> tuple[bool, float, int]:
    """Sort examples that were run before all others, since they were the easiest when they were chosen."""
    rate = record.success_rate
    return rate is None, -(rate or 0.0), _num_characters(example)


def _num_characters(example: dspy.Example) -> int:
    """Return the length of the inputs; values other than text count as JSON, which has no addresses in memory."""
    values = dict(example.inputs().items()).values()
    return sum(len(value if isinstance(value, str) else canonical(to_plain(value))) for value in values)


def _checked_difficulty(difficulty: Difficulty, example: dspy.Example) -> float:
    try:
        value = difficulty(example)
    except Exception as error:
        raise SettingsError(
            f"`difficulty` of EasyToHard raised {type(error).__name__}: {error} for the example {example!r}. It must "
            "return a finite number for each example of the trainset."
        ) from error
    if not checks.number().fits(value):
        raise SettingsError(
            f"`difficulty` of EasyToHard returned {checks.describe_value(value)} for the example {example!r}, expected "
            "a finite number, larger for harder examples."
        )
    return float(value)


def _training_rank(record: ExampleRecord) -> tuple[int, int, float]:
    """Sort by rows, then runs, so that all examples get their turn, then by success rate."""
    return record.times_trained, record.runs, record.success_rate or 0.0


def _are_shares(value: Any) -> bool:
    fits = isinstance(value, list | tuple) and len(value) > 0 and all(map(_SHARE.fits, value))
    return fits and list(value) == sorted(value)


_SHARE = checks.Kind(lambda value: checks.number(above=0).fits(value) and value <= 1, "a number above 0, at most 1")

_FRACTION = checks.Kind(lambda value: checks.number(0).fits(value) and value <= 1, "a number from 0 to 1")

_SHARES = checks.Kind(
    _are_shares,
    "a list of numbers above 0 and at most 1, none smaller than the one before, such as `(0.34, 0.67, 1.0)`",
)

_DIFFICULTY = checks.Kind(
    lambda value: callable(value) and not isinstance(value, type),
    "a function `difficulty(example)` that returns a number",
)
