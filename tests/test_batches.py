"""What finished together is yielded together, stored in one transaction, and kept whatever comes between."""

import dataclasses
import signal
import threading

import dspy
import pytest
import sqlalchemy as sa

from sirius_dspy import ExperienceLibrary
from sirius_dspy.errors import LibraryError
from sirius_dspy.running.parallel import parallel_batches
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing import ScriptedLM, chat_reply
from tests.team import exact_match, questions

PATIENCE = 10


def test_a_batch_has_all_that_finished_while_the_caller_kept_the_one_before():
    go, ended = threading.Event(), threading.Semaphore(0)

    def function(item):
        try:
            return not item or go.wait(PATIENCE)
        finally:
            ended.release()

    batches = parallel_batches(function, range(8), 8)
    assert next(batches) == [(0, True)]
    go.set()
    assert all(ended.acquire(timeout=PATIENCE) for _ in range(8))
    rest = list(batches)
    assert sorted(pair for batch in rest for pair in batch) == [(item, True) for item in range(1, 8)]
    assert len(rest) < 7


def test_an_error_in_a_batch_does_not_lose_the_others():
    together = threading.Barrier(4, timeout=PATIENCE)

    def function(item):
        together.wait()
        if item == 1:
            raise ValueError("item 1")

    found = []

    def keep_all():
        for batch in parallel_batches(function, range(4), 4):
            found.extend(batch)

    with pytest.raises(ValueError, match="item 1"):
        keep_all()
    assert sorted(found) == [(0, None), (2, None), (3, None)]


@pytest.fixture
def library(tmp_path):
    with ExperienceLibrary(tmp_path / "library.sqlite") as library:
        library.count()  # makes the tables
        yield library


@pytest.fixture
def commits():
    """The transactions that wrote, from now on."""
    seen = []

    def note(connection):
        if connection.get_execution_options().get("writes"):
            seen.append(connection)

    sa.event.listen(sa.Engine, "commit", note)
    yield seen
    sa.event.remove(sa.Engine, "commit", note)


def test_runs_that_ended_together_take_one_transaction(library, commits):
    data = questions(6)
    runs = list(collected(data))
    ids = library.add_runs([run for _, run in runs], [task.example for task, _ in runs])
    assert len(commits) == 1
    assert ids == [run.id for _, run in runs] == [run.id for run in library.trajectories()]
    assert all(library.example(run.example_key) == task.example for task, run in runs)
    assert library.verify() == []


def collected(data):
    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(answer=prompt.field("question"))))
    for batch in Rollouts(exact_match, num_threads=3).run_batches(program, [Task(example) for example in data]):
        yield from batch


def test_a_library_of_batches_equals_one_of_single_runs(library, tmp_path):
    runs = list(collected(questions(6)))
    library.add_runs([run for _, run in runs], [task.example for task, _ in runs])
    with ExperienceLibrary(tmp_path / "single.sqlite") as single:
        for task, run in runs:
            single.add(run, task.example)
        assert list(single.trajectories()) == list(library.trajectories())
        assert single.stats(threshold=1.0) == library.stats(threshold=1.0)


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud83d\ude00"])
def test_a_run_that_cannot_be_stored_does_not_keep_the_others_out(value, library):
    pairs = list(collected(questions(3)))
    task, run = pairs[1]
    pairs[1] = task, dataclasses.replace(run, prediction={"answer": value})
    with pytest.raises(LibraryError, match="trajectory"):
        library.add_runs([run for _, run in pairs], [task.example for task, _ in pairs])
    assert [run.id for run in library.trajectories()] == [pairs[0][1].id, pairs[2][1].id]


def test_a_first_interrupt_lets_a_batch_be_kept_and_what_is_in_flight_too(library):
    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(lambda prompt: chat_reply(answer=prompt.field("question"))))
    seen = []

    def keep_all():
        tasks = [Task(example) for example in questions(300)]
        for batch in Rollouts(exact_match, num_threads=4).run_batches(program, tasks):
            if not seen:
                signal.raise_signal(signal.SIGINT)  # not held back, it would come before the batch is kept
            seen.extend(library.add_runs([run for _, run in batch], [task.example for task, _ in batch]))

    with pytest.raises(KeyboardInterrupt):
        keep_all()
    assert seen
    assert len(seen) == len(program.lm.engine.requests) < 300
    assert {run.id for run in library.trajectories()} == set(seen)
