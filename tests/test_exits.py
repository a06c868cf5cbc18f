"""Code of the user that would end the process, and errors that cannot say what they are, end one run only."""

import asyncio

import dspy
import pytest

from sirius_dspy import ProcessExecutor, evaluate
from sirius_dspy.errors import MetricError
from sirius_dspy.running.record import arecord
from tests import toy


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("nothing to say")


class Leaving(dspy.Module):
    """Leaves the run of one example."""

    def __init__(self, how=None):
        super().__init__()
        self.how = how
        self.inner = toy.student()

    def forward(self, number):
        found = self.inner(number=number)
        if number == 4 and self.how is not None:
            raise self.how
        return found


@pytest.fixture(autouse=True)
def chat():
    dspy.configure(adapter=toy.ADAPTER)


EXITS = [SystemExit(), SystemExit("bye"), asyncio.CancelledError(), MuteError()]
WAYS = pytest.mark.parametrize("how", EXITS, ids=repr)


@WAYS
def test_a_program_that_exits_fails_in_that_run_only(how):
    found = evaluate(Leaving(how), toy.examples([0, 2, 4, 6]), toy.exact, num_threads=2)
    assert (found.num_failed, found.score) == (1, 0.75)


@WAYS
def test_a_metric_that_exits_fails_for_that_run_only(how):
    def metric(example, prediction, trace=None):
        if example.number == 4:
            raise how
        return toy.exact(example, prediction)

    found = evaluate(Leaving(), toy.examples([0, 2, 4, 6]), metric, num_threads=2)
    assert (found.num_failed, found.score) == (1, 0.75)


def test_so_it_is_in_other_processes():
    program = Leaving(SystemExit(3))
    found = evaluate(program, toy.examples([0, 2, 4, 6]), toy.exact, executor=ProcessExecutor(1), num_threads=2)
    assert (found.num_failed, found.score) == (1, 0.75)


def test_who_cancels_a_run_from_outside_cancels_it():
    class Waiting(dspy.Module):
        async def aforward(self, number):
            await asyncio.sleep(60)

    async def cancel_soon():
        task = asyncio.create_task(arecord(Waiting(), {"number": 1}))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel_soon())


@pytest.mark.parametrize(
    "value", [10**400, -(10**5000), float("inf"), "x" * 10_000], ids=["large", "huge", "infinite", "text"]
)
def test_a_number_that_no_float_can_hold_is_an_error_of_the_metric_in_few_words(value):
    with pytest.raises(MetricError, match="finite number") as caught:
        evaluate(Leaving(), toy.examples([2]), lambda example, prediction, trace=None: value)
    assert len(str(caught.value)) < 700
