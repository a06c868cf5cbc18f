"""Contract tests for schedules."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import dspy

from sirius_dspy.examples import unique
from sirius_dspy.optimizer.schedule import ExampleRecord, Schedule

ITERATIONS = 4


class ScheduleContract:
    """Tests that every `Schedule` must pass. Subclass it with a fixture `schedule` that returns a new schedule.

    The examples have the inputs `question` and the label `answer`. No test demands that an example is chosen: which
    ones are worth a run is the schedule's own business, and a matter of its tests.

    Examples:
        ```python
        class TestMySchedule(ScheduleContract):
            @pytest.fixture
            def schedule(self):
                return MySchedule()
        ```
    """

    def test_its_settings_are_right(self, schedule: Schedule) -> None:
        """`check` is called before the first LM call, and may only refuse wrong settings."""
        schedule.check()

    def test_it_chooses_among_the_examples(self, schedule: Schedule) -> None:
        """The choice is a list of keys, at least one, and none twice; it holds whatever the records say."""
        for case in _cases():
            chosen = case.choice_of(schedule)
            assert isinstance(chosen, list | tuple)
            assert chosen
            assert len(set(chosen)) == len(chosen)
            assert set(chosen) <= set(case.examples)

    def test_equal_records_give_an_equal_choice(self, schedule: Schedule) -> None:
        """A resumed compile chooses again, and must run the same examples."""
        assert [case.choice_of(schedule) for case in _cases()] == [case.choice_of(schedule) for case in _cases()]

    def test_the_order_of_the_trainset_has_no_say(self, schedule: Schedule) -> None:
        """A resumed compile may get the trainset in another order."""
        for case in _cases():
            examples = dict(reversed(list(case.examples.items())))
            assert set(case._replace(examples=examples).choice_of(schedule)) == set(case.choice_of(schedule))

    def test_it_chooses_no_more_than_planned(self, schedule: Schedule) -> None:
        """A plan counts the runs of an iteration by `num_chosen`."""
        for case in _cases():
            assert len(case.choice_of(schedule)) <= schedule.num_chosen(len(case.examples), case.iteration)

    def test_the_arguments_stay_as_they_were(self, schedule: Schedule) -> None:
        """Examples and records belong to the compile."""
        for case in _cases():
            before = copy.deepcopy(case)
            case.choice_of(schedule)
            assert case == before


class _Case(NamedTuple):
    examples: Mapping[str, dspy.Example]
    records: Mapping[str, ExampleRecord]
    iteration: int

    def choice_of(self, schedule: Schedule) -> Sequence[str]:
        return schedule.choose(self.examples, self.records, self.iteration, ITERATIONS)


def _cases() -> Iterator[_Case]:
    """Examples that are solved never, sometimes or always, in each iteration; one trainset has a single example."""
    for number in (1, 12):
        examples = unique(
            dspy.Example(question="?" * size, answer=str(size)).with_inputs("question") for size in range(1, number + 1)
        )
        for iteration in range(1, ITERATIONS + 1):
            records = {key: _record(position, iteration - 1) for position, key in enumerate(examples)}
            yield _Case(examples, records, iteration)


def _record(position: int, iterations: int) -> ExampleRecord:
    solved = position % 3
    return ExampleRecord(
        runs=2 * iterations, successes=solved * iterations, times_trained=iterations if solved else 0, steps=2.0
    )
