"""Which examples an iteration runs: by the schedules that come with the package, and by the user's own."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from sirius_dspy import Collect, EasyToHard, ExampleRecord, LeastTrainedFirst, Schedule
from sirius_dspy.errors import RunMismatchError, SettingsError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.testing import ScheduleContract
from sirius_dspy.tracking.events import Tracker
from tests.toy import ADAPTER, examples, optimizer, student


@pytest.fixture(autouse=True)
def chat() -> None:
    dspy.configure(adapter=ADAPTER)


class Rotating(Schedule):
    """Runs two examples at a time, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: dict[int, Any] = {}

    def choose(self, examples, records, iteration, iterations):
        self.told[iteration] = dict(records)
        keys = sorted(examples, key=lambda key: examples[key].answer)
        return keys[2 * iteration - 2 : 2 * iteration] or keys[:1]

    def num_chosen(self, num_examples, iteration):
        return min(2, num_examples)


class Returns(Schedule):
    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def choose(self, examples, records, iteration, iterations):
        return self.keys(list(examples)) if callable(self.keys) else self.keys


SCHEDULES = [
    EasyToHard(),
    EasyToHard(lambda example: -len(example.question), shares=[0.1, 0.1, 0.5]),
    LeastTrainedFirst(5),
    LeastTrainedFirst(100, max_hopeless=0),
    Rotating(),
]


class TestSchedules(ScheduleContract):
    @pytest.fixture(params=SCHEDULES, ids=lambda schedule: type(schedule).__name__)
    def schedule(self, request):
        return request.param


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Returns([]), "test_it_chooses_among_the_examples"),
        (Returns(["unknown"]), "test_it_chooses_among_the_examples"),
        (Returns(lambda keys: [keys[0], keys[0]]), "test_it_chooses_among_the_examples"),
        (Returns(lambda keys: keys[:3]), "test_the_order_of_the_trainset_has_no_say"),
    ],
)
def test_a_schedule_that_breaks_the_contract_fails(broken, test):
    with pytest.raises(AssertionError):
        getattr(ScheduleContract(), test)(broken)


def team(*questions: str) -> dict[str, dspy.Example]:
    return {question: dspy.Example(question=question).with_inputs("question") for question in questions}


def chosen_by(schedule, records, iteration=1):
    return list(schedule.choose(team(*records), records, iteration, 3))


def test_easy_to_hard_begins_with_short_inputs():
    records = {question: ExampleRecord() for question in ("bbbb", "a", "ccc", "dd")}
    assert chosen_by(EasyToHard(shares=(0.5, 1.0)), records) == ["a", "dd"]
    assert chosen_by(EasyToHard(shares=(0.5, 1.0)), records, iteration=2) == ["a", "dd", "ccc", "bbbb"]


def test_easy_to_hard_goes_by_the_success_rate_where_there_is_one():
    records = {
        "never run, long": ExampleRecord(),
        "new": ExampleRecord(),
        "failed": ExampleRecord(runs=4),
        "solved": ExampleRecord(runs=4, successes=4),
        "partly": ExampleRecord(runs=4, successes=1),
    }
    order = chosen_by(EasyToHard(), records, iteration=3)
    assert order == ["solved", "partly", "failed", "new", "never run, long"]


def test_the_last_share_holds_for_all_later_iterations_and_one_example_always_runs():
    schedule = EasyToHard(shares=(0.01, 0.5))
    assert [schedule.num_chosen(8, iteration) for iteration in (1, 2, 3, 9)] == [1, 4, 4, 4]


def test_a_difficulty_of_the_user_s_own_decides():
    schedule = EasyToHard(lambda example: -len(example.question), shares=(0.5,))
    records = {"a": ExampleRecord(4, 4), "bb": ExampleRecord(4, 0)}
    assert chosen_by(schedule, records) == ["bb"]


def test_least_trained_first_takes_the_hardest_of_those_that_were_trained_least():
    records = {
        "often": ExampleRecord(runs=4, successes=1, times_trained=2),
        "easy": ExampleRecord(runs=4, successes=4, times_trained=1),
        "hard": ExampleRecord(runs=4, successes=1, times_trained=1),
        "new": ExampleRecord(),
    }
    assert chosen_by(LeastTrainedFirst(4), records) == ["new", "hard", "easy", "often"]
    assert chosen_by(LeastTrainedFirst(2), records) == ["new", "hard"]


HOPELESS = {f"hopeless {number}": ExampleRecord(runs=4) for number in range(4)}
TRAINED = {f"trained {number}": ExampleRecord(4, 2, times_trained=1) for number in range(4)}


def test_examples_that_never_gave_a_row_take_only_some_of_the_places():
    chosen = chosen_by(LeastTrainedFirst(4, max_hopeless=0.5), HOPELESS | TRAINED)
    assert sorted(name.split()[0] for name in chosen) == ["hopeless", "hopeless", "trained", "trained"]
    assert not set(chosen_by(LeastTrainedFirst(4, max_hopeless=0), HOPELESS | TRAINED)) & set(HOPELESS)


def test_they_take_the_places_that_nobody_else_wants():
    assert set(chosen_by(LeastTrainedFirst(4, max_hopeless=0), HOPELESS)) == set(HOPELESS)
    assert set(chosen_by(LeastTrainedFirst(6, max_hopeless=0), HOPELESS | TRAINED)) > set(TRAINED)
    assert set(chosen_by(LeastTrainedFirst(8), HOPELESS | TRAINED)) == {*HOPELESS, *TRAINED}


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (EasyToHard(shares=()), r"`shares` of EasyToHard is \[\]"),
        (EasyToHard(shares=(0.5, 0.2)), "none smaller than the one before"),
        (EasyToHard(shares=(0.5, 1.2)), "at most 1"),
        (EasyToHard(shares=(0, 1.0)), "above 0"),
        (EasyToHard(shares="all"), "`shares`"),
        (EasyToHard(difficulty=3), "`difficulty` of EasyToHard is 3"),
        (EasyToHard(difficulty=lambda example: "hard"), "`difficulty` of EasyToHard returned 'hard'"),
        (EasyToHard(difficulty=lambda example: float("nan")), "finite number"),
        (
            EasyToHard(difficulty=lambda example: example.evnts),
            "raised AttributeError.*evnts",
        ),
        (LeastTrainedFirst(0), "`max_examples` of LeastTrainedFirst is 0"),
        (LeastTrainedFirst(None), "`max_examples`"),
        (LeastTrainedFirst(3, max_hopeless=1.5), "`max_hopeless`"),
        (Returns(["nothing"]), "the schedule Returns returned the unknown key 'nothing' in iteration 1"),
        (Returns([]), "returned no example"),
        (Returns(lambda keys: keys[:1] * 2), "2 keys of 1 examples"),
        (Returns(lambda keys: set(keys)), "expected a list of keys"),
        (Returns(None), "returned None"),
        (Returns("text"), "returned 'text'"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_anything_is_paid(schedule, said, tmp_path):
    program = student()
    made = optimizer(tmp_path / "run", collect=Collect(schedule=schedule))
    with pytest.raises(SettingsError, match=said):
        made.compile(program, trainset=examples(), valset=examples())
    assert program.doubler.lm.calls == 0
    assert not (tmp_path / "run").exists()


def numbers_run(folder, iteration):
    """The inputs of the runs of an iteration, and those of the runs that were repaired."""
    with ExperienceLibrary(folder / "library.sqlite") as library:
        rollouts = {run.id: run for run in library.trajectories(iteration=iteration, origin="rollout")}
        repaired = [rollouts[item.parent] for item in library.repairs(iteration=iteration)]
        runs = [int(run.steps[0].inputs["number"]) for run in rollouts.values()]
        return sorted(runs), {int(run.steps[0].inputs["number"]) for run in repaired}


def test_a_compile_runs_and_repairs_what_is_chosen_and_nothing_else(tmp_path):
    schedule = EasyToHard(lambda example: example.number, shares=(0.25, 0.5))
    made = optimizer(tmp_path, collect=Collect(samples=2, schedule=schedule))
    plan = made.plan(student(), trainset=examples(), valset=examples())
    made.compile(student(), trainset=examples(), valset=examples())
    assert numbers_run(tmp_path, 1) == ([0, 0, 1, 1], {1})
    assert numbers_run(tmp_path, 2)[0] == [0, 0, 1, 1, 2, 2, 3, 3]
    units = {(stage.iteration, stage.stage): stage.units for stage in plan.stages}
    assert units[1, "collect"].likely == 4
    assert units[2, "collect"].likely == 8
    assert units[1, "repair"].high == 2


def test_a_schedule_hears_what_the_iterations_before_did(tmp_path):
    schedule = Rotating()
    optimizer(tmp_path, collect=Collect(samples=2, schedule=schedule)).compile(
        student(), trainset=examples(range(4)), valset=examples()
    )
    assert set(schedule.told[1].values()) == {ExampleRecord()}
    told = list(schedule.told[2].values())  # in the order of the trainset: 0 succeeds, 1 is repaired, 2 and 3 wait
    assert told == [ExampleRecord(2, 2, 1, 2.0), ExampleRecord(2, 0, 1, 2.0), ExampleRecord(), ExampleRecord()]


class Interrupts(Tracker):
    """Stops the compile at the n-th run of an iteration."""

    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.left = iteration, number

    def on_rolled_out(self, event):
        self.left -= event.iteration == self.iteration
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_compile_runs_the_same_examples(tmp_path):
    def compiled(folder, **settings):
        made = optimizer(folder, collect=Collect(samples=2, schedule=LeastTrainedFirst(3)), **settings)
        return made.compile(student(), trainset=examples(), valset=examples())

    compiled(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compiled(tmp_path / "cut", tracker=Interrupts(2, 3), num_threads=1)
    compiled(tmp_path / "cut")
    for iteration in (1, 2):
        assert numbers_run(tmp_path / "cut", iteration) == numbers_run(tmp_path / "whole", iteration)


def test_another_schedule_is_another_compile(tmp_path):
    def compiled(schedule):
        made = optimizer(tmp_path / "run", iterations=1, collect=Collect(samples=1, schedule=schedule))
        return made.compile(student(), trainset=examples(), valset=examples())

    compiled(EasyToHard())
    compiled(EasyToHard())
    for other in (None, EasyToHard(shares=(0.5, 1.0)), EasyToHard(lambda example: 1.0), LeastTrainedFirst(3)):
        with pytest.raises(RunMismatchError, match=r"collect\.schedule"):
            compiled(other)
