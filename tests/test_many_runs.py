"""Training sets of many runs: memory, and what becomes of the rows that are not held."""

import random
import tracemalloc

from benchmarks.library_runs import build, make_run
from sirius_dspy import Curator
from sirius_dspy.plain import DigestSet, text_digest
from sirius_dspy.training.pool import SPARE

FEW, MANY = 80, 200


def curate(runs):
    return Curator().curate(build().program, runs, {"solver": ["solver"]}, threshold=1.0)["solver"]


def peak(number):
    """The most memory in bytes that Python's objects take at a time, for so many runs of one example."""
    tracemalloc.start()
    try:
        curate(map(make_run, range(number)))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_runs_of_an_example():
    curate(map(make_run, range(FEW)))  # what is kept for the next time does not count
    few, many = peak(FEW), peak(MANY)
    # The messages of a row take 1,000 bytes, and half of the runs succeed.
    assert many - few < (MANY - FEW) * 100


def test_rows_that_are_not_held_are_counted_like_all_over_the_cap():
    runs = [make_run(number) for number in range(MANY)]
    found = curate(runs)
    successes = sum(run.succeeded(1.0) for run in runs)
    cap = Curator().max_per_example
    assert successes > SPARE * cap
    assert len(found.rows) == cap
    assert found.dropped == {"over the cap per example": successes - cap}


def test_which_rows_are_held_does_not_depend_on_the_order_of_the_runs():
    runs = [*map(make_run, range(200)), *map(make_run, range(50))]  # some come twice
    sets = []
    for seed in (0, 1):
        random.Random(seed).shuffle(runs)
        sets.append(curate(runs))
    assert sets[0] == sets[1]
    assert sets[0].dropped["duplicate"] == sum(make_run(number).succeeded(1.0) for number in range(50))


def test_a_set_of_digests_knows_each_of_them():
    digests = [text_digest(str(number)) for number in range(100)]
    with DigestSet() as found:
        assert digests[0] not in found
        assert [found.add(digest) for digest in digests[:50]] == [True] * 50
        assert not found.add(digests[7])
        assert [digest in found for digest in digests] == [True] * 50 + [False] * 50
        assert len(found) == 50
