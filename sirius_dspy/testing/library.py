"""Contract tests for experience libraries."""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dspy

from sirius_dspy.errors import LibraryError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Attempt, Failure, Repair, Step, Trajectory, Usage, example_key

EXAMPLE = dspy.Example({"question": "2+2?", "base": 10, "answer": "4"}).with_inputs("question", "base")
"""The example of the runs that `make_run` creates."""


class _Priority(enum.Enum):
    """A value that is no JSON, though its own value is."""

    HIGH = "high"


class LibraryContract:
    """Tests that every experience library must pass. Subclass it with a fixture `library` that returns an empty one.

    Examples:
        ```python
        class TestMyLibrary(LibraryContract):
            @pytest.fixture
            def library(self, tmp_path):
                with MyLibrary(tmp_path / "library.db") as library:
                    yield library
        ```
    """

    # Runs

    def test_a_trajectory_reads_back_as_it_was_added(self, library: ExperienceLibrary) -> None:
        """Every field and the creation time are restored."""
        failed = make_step("solver", 1, outputs=None, failure=Failure("AdapterParseError", "no field", "{half"))
        run = make_run(
            steps=(make_step("analyst", source="edited"), failed),
            prediction=None,
            rewards={"analyst": 0.5, "solver": 0.0},
            failure=Failure("AdapterParseError", "no field"),
            run="r",
            iteration=3,
            sample=2,
            origin="validation",
        )
        assert library.add(run) == run.id
        stored = library.get(run.id)
        assert stored == run
        assert stored.id == run.id
        assert stored.created_at == run.created_at

    def test_a_reward_reads_back_exactly(self, library: ExperienceLibrary) -> None:
        """The id is a hash that includes the reward, so a rounded reward would be another run."""
        rewards = [0.0, -0.0, 1, True, 0.1 + 0.2, -1e300]
        for reward in rewards:
            run = make_run(reward=reward)
            assert library.get(library.add(run)).id == run.id
            assert make_run(reward=reward).id in {run.id for run in library.trajectories(min_reward=reward)}
        assert library.verify() == []

    def test_writing_twice_stores_once(self, library: ExperienceLibrary) -> None:
        """A compile that was killed can write the same run again."""
        first = make_run(seconds=1.0)
        again = make_run(seconds=9.0)  # times are not part of the identity
        assert library.add(first) == library.add(again)
        assert [run.seconds for run in library.trajectories()] == [1.0]
        assert library.add_all([first, make_run("other"), again]) == 1
        assert library.count() == 2

    def test_runs_that_ended_together_are_stored_as_if_one_by_one(self, library: ExperienceLibrary) -> None:
        """In their order, with their examples, each once, and whatever else is refused."""
        first, second = make_run(seconds=1.0), make_run("other")
        again, broken = make_run(seconds=9.0), make_run(reward=float("nan"))
        assert library.add_runs([first, second, again], [EXAMPLE] * 3) == [first.id, second.id, first.id]
        assert [(run.id, run.seconds) for run in library.trajectories()] == [(first.id, 1.0), (second.id, 1.5)]
        assert library.example(first.example_key) == EXAMPLE
        third = make_run("third")
        _check_refusal(lambda: library.add_runs([broken, third], [EXAMPLE] * 2), "not JSON")
        assert library.get(third.id) == third
        assert library.add_runs([], []) == []
        assert library.verify() == []

    def test_an_unknown_id_is_an_error_that_names_it(self, library: ExperienceLibrary) -> None:
        """The error is never a `KeyError`, and the result never `None`."""
        library.add(make_run())
        _check_refusal(lambda: library.get("nowhere"), "'nowhere'")
        _check_refusal(lambda: library.example("nowhere"), "'nowhere'")

    def test_what_would_not_read_back_is_refused(self, library: ExperienceLibrary) -> None:
        """It is refused when it is stored, not when it is read."""
        bad: tuple[dict[str, Any], ...] = (
            {"reward": float("nan")},
            {"reward": float("inf")},
            {"seconds": float("nan")},
            {"prediction": {"value": object()}},
            {"prediction": {"value": [float("nan")]}},
            {"prediction": {"value": uuid.uuid4()}},
            {"prediction": {"value": _Priority.HIGH}},
            {"prediction": "\ud83d\ude00"},  # JSON would merge the two characters into one
            {"seed": 2**70},
            {"run": 5},
        )
        for fields in bad:
            _check_refusal(partial(library.add, make_run(**fields)))
        assert library.count() == 0

    def test_a_run_whose_parent_is_unknown_is_refused(self, library: ExperienceLibrary) -> None:
        """Lineage is complete."""
        failed, _, replayed = make_repair()
        _check_refusal(lambda: library.add(replayed[0]), "before its repairs")
        assert library.add_all([*replayed, failed]) == 3  # within one transaction, any order works

    # Examples

    def test_an_example_reads_back_with_its_inputs_marked(self, library: ExperienceLibrary) -> None:
        """The library is readable without the dataset."""
        library.add(make_run(), EXAMPLE)
        library.add(make_run(sample=1), EXAMPLE)
        stored = library.example(example_key(EXAMPLE))
        assert stored.inputs().toDict() == {"question": "2+2?", "base": 10}
        assert stored.labels().toDict() == {"answer": "4"}
        assert example_key(stored) == example_key(EXAMPLE)

    def test_an_example_without_labels_reads_back(self, library: ExperienceLibrary) -> None:
        """Its texts may contain any characters."""
        example = dspy.Example(question="why\0\ud800?").with_inputs("question")
        library.add(make_run(example_key=example_key(example)), example)
        assert example_key(library.example(example_key(example))) == example_key(example)

    def test_another_example_than_the_trajectorys_is_refused(self, library: ExperienceLibrary) -> None:
        """The trajectory is not stored either."""
        _check_refusal(lambda: library.add(make_run(), EXAMPLE.copy(answer="5")), "Pass the example")
        assert library.count() == 0

    # Selections

    def test_filters_select_and_combine(self, library: ExperienceLibrary) -> None:
        """`count` and `trajectories` agree, and runs are returned in the order in which they were added."""
        runs = _runs_of_all_kinds()
        library.add_all(runs)

        def check(keep: Callable[[Trajectory], bool], **filters: Any) -> None:
            wanted = [run.id for run in runs if keep(run)]
            assert [run.id for run in library.trajectories(**filters)] == wanted
            assert library.count(**filters) == len(wanted)

        check(lambda run: True)
        check(lambda run: True, run=None, sample=None)
        check(lambda run: run.run == "first", run="first")
        check(lambda run: run.iteration == 0, iteration=0)
        check(lambda run: run.origin == "rollout", origin="rollout")
        check(lambda run: run.origin in ("imported", "validation"), origin=("imported", "validation"))
        check(lambda run: False, origin=())
        check(lambda run: run.example_key == "other", example_key="other")
        check(lambda run: run.reward >= 0.2, min_reward=0.2)
        check(lambda run: run.program == "p2", program="p2")
        check(lambda run: run.parent == runs[0].id, parent=runs[0].id)
        check(lambda run: run.sample == 0, sample=0)
        check(lambda run: run is runs[7], run="second", iteration=1, min_reward=0.2)
        check(lambda run: False, run="' OR 1=1 --")

    def test_an_unknown_filter_is_an_error(self, library: ExperienceLibrary) -> None:
        """A misspelled filter must not select everything."""
        filters: dict[str, Any] = {"rum": "first"}
        _check_refusal(lambda: library.trajectories(**filters), "'rum'", TypeError)
        _check_refusal(lambda: library.count(**filters), "'rum'", TypeError)

    def test_stats_count_by_run_iteration_and_origin(self, library: ExperienceLibrary) -> None:
        """The statistics include the cost, and the steps of each agent."""
        failed, repair, replayed = make_repair("a")
        library.add_all([failed, make_run(run="a", reward=0.5), make_run(run="a", iteration=1)])
        library.add_repair(repair, replayed)
        first, second, third = library.stats(threshold=0.5)
        assert (first.run, first.iteration, first.origin) == ("a", 0, "rollout")
        assert (first.num_trajectories, first.num_successes, first.mean_reward) == (2, 1, 0.25)
        assert first.usage == Usage(6, 100, 24)
        assert first.num_steps == {"analyst": 2, "solver": 2}
        assert (second.iteration, second.origin, second.num_trajectories) == (1, "rollout", 1)
        assert (third.iteration, third.origin, third.num_successes) == (0, "repair", 1)

    def test_an_empty_library_answers(self, library: ExperienceLibrary) -> None:
        """An empty library raises no errors."""
        assert library.count() == 0
        assert list(library.trajectories()) == []
        assert list(library.repairs()) == []
        assert library.stats(threshold=1.0) == ()
        assert library.verify() == []
        assert library.add_all([]) == 0

    # Repairs

    def test_a_repair_reads_back_with_its_runs(self, library: ExperienceLibrary) -> None:
        """Writing it twice stores it once."""
        failed, repair, replayed = make_repair()
        library.add(failed)
        library.add_repair(repair, replayed)
        library.add_repair(dataclasses.replace(repair, seconds=99.0), replayed)
        assert list(library.repairs()) == [repair]
        assert [run.id for run in library.trajectories(parent=failed.id)] == [run.id for run in replayed]
        assert library.verify() == []

    def test_repairs_are_selected_by_run_and_iteration(self, library: ExperienceLibrary) -> None:
        """A resumed compile needs to know which repairs are done."""
        for run, iteration in [("a", 0), ("a", 1), ("b", 1)]:
            failed, repair, replayed = make_repair(run, iteration)
            library.add(failed)
            library.add_repair(repair, replayed)
        stored = [(repair.run, repair.iteration) for repair in library.repairs(run="a")]
        assert stored == [("a", 0), ("a", 1)]
        assert [repair.run for repair in library.repairs(iteration=1)] == ["a", "b"]
        assert list(library.repairs(run="b", iteration=0)) == []

    def test_a_repair_without_attempts_is_kept(self, library: ExperienceLibrary) -> None:
        """It records that there was nothing to try."""
        failed = library.get(library.add(make_run(reward=0.0)))
        library.add_repair(Repair(failed.id, ()), [])
        assert list(library.repairs()) == [Repair(failed.id, ())]

    def test_a_repair_is_stored_whole_or_not_at_all(self, library: ExperienceLibrary) -> None:
        """An attempt never refers to a missing run."""
        failed, repair, replayed = make_repair()
        library.add(failed)
        _check_refusal(lambda: library.add_repair(repair, replayed[:1]), "pass every replayed run")
        assert library.count() == 1
        assert list(library.repairs()) == []
        assert library.verify() == []

    def test_pairs_join_a_failure_with_its_successful_repairs(self, library: ExperienceLibrary) -> None:
        """The pairs are suitable for preference training."""
        failed, repair, replayed = make_repair("a")
        library.add_all([failed, make_run(), make_run("9", 0.0)])
        library.add_repair(repair, replayed)
        library.add(make_run("8", run="a", origin="repair", parent=replayed[1].id, edited=1))  # its parent succeeded
        assert [(bad.id, good.id) for bad, good in library.pairs(threshold=1.0)] == [(failed.id, replayed[1].id)]
        assert list(library.pairs(threshold=1.0, run="b")) == []
        assert list(library.pairs(threshold=1.0, run="a", iteration=1)) == []

    # Handles

    def test_many_threads_write_the_same_and_their_own(self, library: ExperienceLibrary) -> None:
        """Nothing is lost or stored twice."""

        def write(thread: int) -> None:
            for number in range(5):
                library.add(make_run(sample=number), EXAMPLE)
                library.add(make_run(sample=number, run=f"thread {thread}"))

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(write, range(32)))
        assert library.count(run="") == 5
        assert library.count() == 5 + 32 * 5
        assert library.verify() == []

    def test_a_copied_handle_reaches_the_same_library(self, library: ExperienceLibrary) -> None:
        """DSPy copies optimizers, and pickles them for other processes."""
        library.add(make_run())
        with pickle.loads(pickle.dumps(library)) as unpickled, copy.deepcopy(library) as copied:
            unpickled.add(make_run("5"))
            copied.add(make_run("6"))
        assert library.count() == 3

    def test_a_closed_handle_opens_again(self, library: ExperienceLibrary) -> None:
        """Closing twice raises no error."""
        library.add(make_run())
        library.close()
        library.close()
        assert library.count() == 1


def make_step(predictor: str = "solver", occurrence: int = 0, answer: str = "4", **fields: Any) -> Step:
    """Make a step that answers a sum; `fields` override its values."""
    at = 2 * occurrence
    values = {"inputs": {"question": "2+2?"}, "outputs": {"answer": answer}, "lm": "openai/tiny"}
    return Step(predictor, occurrence, **{**values, "started": at, "ended": at + 1, **fields})


def make_run(answer: str = "4", reward: float = 1.0, **fields: Any) -> Trajectory:
    """Make a run of two agents on `EXAMPLE`; `fields` override its values."""
    steps = (
        make_step("analyst", usage=Usage(1, 20, 5), seconds=0.25, num_demos=2),
        make_step("solver", 1, answer, usage=Usage(2, 30, 7), source="recorded"),
    )
    values = {"example_key": example_key(EXAMPLE), "steps": steps, "prediction": {"answer": answer}, "program": "p1"}
    return Trajectory(reward=reward, **{**values, "seed": 7, "seconds": 1.5, **fields})


def make_repair(run: str = "r", iteration: int = 0) -> tuple[Trajectory, Repair, tuple[Trajectory, Trajectory]]:
    """Make a failed run, its repair with three attempts, and the two replayed runs."""
    failed = make_run("5", 0.0, run=run, iteration=iteration)
    lineage: dict[str, Any] = {"run": run, "iteration": iteration, "origin": "repair", "parent": failed.id}
    wrong = make_run("6", 0.0, edited=0, **lineage)
    right = make_run("4", 1.0, edited=1, **lineage)
    attempts = (
        Attempt(0, "analyst", "failed", "Look\0again", {"a": 1}, {"a": 2}, 0.0, wrong.id, "", Usage(3, 9, 9)),
        Attempt(0, "analyst", "leaked", detail="names the answer"),
        Attempt(1, "solver", "repaired", "Add", {"answer": "4"}, {"answer": "4"}, 1.0, right.id, usage=Usage(1, 2, 3)),
    )
    return failed, Repair(failed.id, attempts, run=run, iteration=iteration, seconds=2.5), (wrong, right)


def _runs_of_all_kinds() -> list[Trajectory]:
    origins = ("rollout", "rollout", "imported", "validation")
    runs = [
        make_run(str(number), number / 10, run=run, iteration=number % 2, sample=number, origin=origin)
        for run in ("first", "second")
        for number, origin in enumerate(origins)
    ]
    runs.append(make_run(run="first", example_key="other", program="p2", reward=-1.0, sample=9))
    runs.append(make_run(run="first", origin="repair", parent=runs[0].id, edited=0, sample=8))
    return runs


def _check_refusal(action: Callable[[], Any], match: str = "", error: type[Exception] = LibraryError) -> None:
    import pytest

    with pytest.raises(error, match=match or None):
        action()
