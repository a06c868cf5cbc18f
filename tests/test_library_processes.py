"""Several processes on one library. Children are new interpreters: they share the database alone with the parent."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sirius_dspy
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.testing.library import make_run

WRITE_UNTIL_KILLED = """
import itertools, sys
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Step, Trajectory

library = ExperienceLibrary(sys.argv[1])
for number in itertools.count():
    steps = tuple(Step("solver", n, {"q": "x" * 2000}, {"a": "y" * 2000}, "lm") for n in range(5))
    trajectory = Trajectory(example_key="e", steps=steps, prediction=None, reward=0.0, sample=number)
    print(library.add(trajectory), flush=True)
"""

WRITE_THE_SAME = """
import sys
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Step, Trajectory

order = range(450) if sys.argv[2] == "up" else range(449, -1, -1)
steps = (Step("solver", 0, {"q": "x"}, {"a": "y"}, "lm"),)
runs = [Trajectory(example_key="e", steps=steps, prediction=None, reward=0.0, sample=n) for n in order]
print("ready", flush=True)
sys.stdin.readline()
with ExperienceLibrary(sys.argv[1]) as library:
    added = library.add_all(runs[:400])  # one transaction
    for run in runs[400:]:
        library.add(run)
print(added, flush=True)
"""


def child(code, *arguments):
    root = str(Path(sirius_dspy.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_kill_9_loses_nothing_that_was_added(url):
    with child(WRITE_UNTIL_KILLED, url) as writer:
        reported = [next(writer.stdout).strip() for _ in range(60)]
        writer.kill()
        # Lines that were on their way; the last may be cut short.
        rest = writer.stdout.read().split("\n")
        reported += [line for line in rest if len(line) == 32]
    with ExperienceLibrary(url) as library:
        stored = [run.id for run in library.trajectories()]
        assert set(reported) <= set(stored)
        assert len(stored) <= len(reported) + 1  # at most the one whose report was cut off
        assert all(len(run.steps) == 5 for run in library.trajectories())
        assert library.verify() == []


def test_two_processes_write_the_same_rows_in_opposite_order(url):
    # Rows that lock each other out unless writers take turns; both also race to create the tables.
    with child(WRITE_THE_SAME, url, "up") as up, child(WRITE_THE_SAME, url, "down") as down:
        for writer in (up, down):
            assert writer.stdout.readline() == "ready\n"
        for writer in (up, down):
            writer.stdin.write("\n")
            writer.stdin.flush()
        for writer in (up, down):
            assert writer.stdout.readline().strip().isdecimal()
    assert (up.returncode, down.returncode) == (0, 0)
    with ExperienceLibrary(url) as library:
        assert library.count() == 450
        assert library.verify() == []


def open_and_add(url, number):
    with ExperienceLibrary(url) as library:
        library.add(make_run(sample=number))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # fork is what is tested
def test_a_handle_survives_fork(url):
    with ExperienceLibrary(url) as library:
        library.add(make_run())

        def add_in_child(number):
            library.add(make_run(sample=number))

        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=add_in_child, args=(number,)) for number in range(1, 5)]
        for process in children:
            process.start()
        library.add(make_run(sample=5))
        for process in children:
            process.join()
        assert [process.exitcode for process in children] == [0] * 4
        assert sorted(run.sample for run in library.trajectories()) == list(range(6))
        assert library.verify() == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_many_processes_create_one_library_at_once(url):
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=open_and_add, args=(url, number)) for number in range(8)]
    for process in children:
        process.start()
    for process in children:
        process.join()
    assert [process.exitcode for process in children] == [0] * 8
    with ExperienceLibrary(url) as library:
        assert library.count() == 8
