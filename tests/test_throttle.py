"""A server with a rate limit gets as many calls at a time as it bears."""

import asyncio
import threading
import time

import dspy
import pytest
from dspy.utils.exceptions import LMError, LMRateLimitError, LMServerError

from sirius_dspy.running.patience import Patience
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.throttle import Throttle, Throttles
from sirius_dspy.testing import FaultServer, chat_reply
from tests.team import exact_match, questions


class LimitedServer(FaultServer):
    """Refuses the calls beyond `capacity` that are there at the same time."""

    def __init__(self, capacity):
        super().__init__(self.serve, self.refuse, retry_after=0.02)
        self.taken = threading.Semaphore(capacity)

    def refuse(self, prompt, before):
        return None if self.taken.acquire(blocking=False) else "429"

    def serve(self, prompt):
        time.sleep(0.01)
        self.taken.release()
        return chat_reply(answer="4")


@pytest.mark.parametrize("capacity", [1, 4])
def test_all_runs_end_and_few_calls_are_refused(capacity):
    with LimitedServer(capacity) as server:
        program = dspy.Predict("question -> answer")
        program.set_lm(server.lm())
        rollouts = Rollouts(exact_match, num_threads=16, patience=Patience(retries=12, first_wait_s=0.01))
        runs = [run for _, run in rollouts.run_all(program, [Task(example) for example in questions(80)])]
        assert len(runs) == 80
        assert all(run.failure is None for run in runs)
        assert server.failed["429"] < 80


def refuse(retry_after=None, error=LMRateLimitError):
    raise error("too many", model="m", status=429 if error is LMRateLimitError else 500, retry_after=retry_after)


def call(throttle, function=lambda: None, *, unwanted=False):
    with throttle.turn(lambda: unwanted):
        return function()


def refused(throttle, function=refuse):
    with pytest.raises(LMError, match="too many"):
        call(throttle, function)


def hold(throttle, number):
    """Calls under way in threads, and the event that ends them."""
    done, started = threading.Event(), threading.Semaphore(0)

    def wait():
        started.release()
        done.wait(5)

    threads = [threading.Thread(target=call, args=(throttle, wait)) for _ in range(number)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert started.acquire(timeout=5)
    return done, threads


def test_there_is_no_limit_before_a_refusal_and_other_failures_set_none():
    throttle = Throttle("m")
    done, threads = hold(throttle, 20)
    refused(throttle, lambda: refuse(error=LMServerError))
    done.set()
    for thread in threads:
        thread.join()
    assert throttle.limit == float("inf")


def test_a_refusal_halves_what_is_under_way_and_answers_raise_it_by_one_a_round():
    throttle = Throttle("m")
    done, threads = hold(throttle, 7)
    refused(throttle)  # the eighth
    assert throttle.limit == 4
    done.set()
    for thread in threads:
        thread.join()
    assert 5 < throttle.limit < 6  # after seven answers
    for _ in range(40):  # near eight, at which the server was busy
        call(throttle)
    assert 6 < throttle.limit < 8


def test_between_two_numbers_the_lower_one_is_the_limit():
    throttle = Throttle("m")
    throttle.limit = 1.9
    done, (first,) = hold(throttle, 1)
    second = threading.Thread(target=call, args=(throttle,))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    done.set()
    for thread in (first, second):
        thread.join(5)
        assert not thread.is_alive()


def test_calls_of_one_moment_that_are_refused_together_count_once():
    throttle, barrier = Throttle("m"), threading.Barrier(8)

    def together():
        barrier.wait(5)
        refuse()

    threads = [threading.Thread(target=refused, args=(throttle, together)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert throttle.limit == 4


def test_a_server_that_asks_for_patience_holds_back_every_call():
    throttle = Throttle("m")
    refused(throttle, lambda: refuse(retry_after=0.3))
    began = time.monotonic()
    call(throttle)
    assert time.monotonic() - began > 0.25


@pytest.mark.timeout(20)
def test_an_unwanted_call_does_not_wait():
    throttle = Throttle("m")
    refused(throttle, lambda: refuse(retry_after=200))
    call(throttle, unwanted=True)


def test_what_is_given_up_keeps_no_other_call_from_starting():
    throttle, given_up, end = Throttle("m"), threading.Event(), threading.Event()
    refused(throttle)
    assert throttle.limit == 1

    def hang():
        with throttle.turn(given_up.is_set):
            end.wait(5)

    hung = threading.Thread(target=hang)
    hung.start()
    waiting = threading.Thread(target=call, args=(throttle,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    given_up.set()
    waiting.join(5)
    assert not waiting.is_alive()
    end.set()
    hung.join()


def test_a_call_inside_another_one_does_not_wait_for_it():
    throttle = Throttle("m")
    refused(throttle)
    assert call(throttle, lambda: call(throttle, lambda: "inner")) == "inner"


def test_asynchronous_calls_wait_for_their_turn_too():
    throttle, under_way, most = Throttle("m"), [], []
    refused(throttle)

    async def one():
        async with throttle.aturn(lambda: False):
            under_way.append(1)
            most.append(len(under_way))
            await asyncio.sleep(0.01)
            under_way.pop()

    async def all_of_them():
        await asyncio.gather(*[one() for _ in range(4)])

    asyncio.run(all_of_them())
    assert most[0] == 1
    assert max(most) <= 3  # each answer allows one more at most


def test_each_lm_has_its_own_throttle_and_copies_share_it():
    throttles = Throttles()
    lm = dspy.LM("openai/a", api_base="http://x")
    assert throttles.of(lm) is throttles.of(lm.copy(temperature=1.0))
    assert throttles.of(lm) is not throttles.of(lm.copy(api_base="http://y"))
    assert throttles.of(lm) is not throttles.of(dspy.LM("openai/b", api_base="http://x"))
    assert throttles.of(object()) is throttles.of(object())


def test_a_refusal_now_and_then_slows_nobody_down():
    """A proxy that refuses one of forty calls at random bears as many calls at a time as before."""
    throttle = Throttle("lm")
    began = time.monotonic()
    for index in range(2000):
        if index % 40 == 39:
            refused(throttle, lambda: refuse(retry_after=60.0))
        else:
            call(throttle)
    assert throttle.limit > 64
    assert time.monotonic() - began < 30  # nobody heeds the minute that one refusal asked for
