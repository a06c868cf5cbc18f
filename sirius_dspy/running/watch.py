"""Watches one piece of work: which LM calls are under way, for how long, and what failed in them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import count
from typing import Any, NamedTuple

from dspy.utils.callback import BaseCallback

from sirius_dspy.errors import OutageError, RolloutError, TimeLimitError
from sirius_dspy.running.faults import fault_of_call
from sirius_dspy.running.known import KnownRequest
from sirius_dspy.running.outage import LOOK_UP_S, Asked, Breaker
from sirius_dspy.running.patience import Health, Patience


class Watch(BaseCallback):
    """Watches one piece of work: which calls are under way, and what failed in them.

    What records calls finds the watch through the context. As a DSPy callback, the watch also hears of calls that are
    not recorded: a metric's, and those of an LM that a program calls directly.

    Args:
        patience: How often to try, and how long.
        health: Of the LMs.
        leaving: Set when all work is to end, because of an interrupt or an error; no retry waits then.
    """

    def __init__(self, patience: Patience, health: Health, leaving: threading.Event | None = None) -> None:
        self.patience = patience
        self.health = health
        self._leaving = leaving or threading.Event()
        self._faults: list[Exception] = []
        self.has_retried = False
        """Whether a single call used up its retries, so that there is no point in trying the whole again."""
        self.waits_for_server = False
        """Whether a call failed of a server that had answered, and is waited for if it is down."""
        self.is_abandoned = False
        self._run_began: float | None = None
        self._num_stopped = 0  # waits under way that do not count
        self._stopped_at = 0.0
        self._stopping = threading.Lock()  # a program may call predictors in several threads
        self._calls: dict[Any, float] = {}
        self._direct: dict[str, _DirectCall] = {}
        self._tries: defaultdict[str, Asked] = defaultdict(Asked)
        self._unanswered: dict[str, Exception] = {}
        self._numbers = count()

    @contextmanager
    def time_run(self) -> Iterator[None]:
        """Enter around a run, which has a time limit; a run inside another one is part of it."""
        if self._run_began is not None:
            yield
            return
        self._run_began = time.monotonic()
        try:
            yield
        finally:
            self._run_began = None

    @contextmanager
    def wait_for_server(self) -> Iterator[None]:
        """Enter around a wait for a server that is down, which is no time of the run.

        If it ends in an `OutageError`, that is noted as well: the program, or DSPy, may catch it.
        """
        with self._stopping:
            self._stopped_at = self._stopped_at if self._num_stopped else time.monotonic()
            self._num_stopped += 1
        try:
            yield
        except OutageError as error:
            self.note_fault(error)
            raise
        finally:
            with self._stopping:
                self._num_stopped -= 1
                if self._num_stopped == 0 and self._run_began is not None:
                    self._run_began += time.monotonic() - self._stopped_at

    @contextmanager
    def time_call(self) -> Iterator[None]:
        """Enter around each LM call.

        Raises:
            TimeLimitError: Nobody waits for this work any more.
        """
        if self.is_abandoned:
            raise TimeLimitError("The run took too long and was given up.")
        key = next(self._numbers)
        self._calls[key] = time.monotonic()
        try:
            yield
            self.health.note_answer()
        finally:
            self._calls.pop(key, None)

    def probe(self, known: KnownRequest) -> None:
        """Send a known request, which has the time limit of a call."""
        with self.time_call():
            known.send(without=self)

    async def aprobe(self, known: KnownRequest) -> None:
        """The same without blocking the event loop."""
        with self.time_call():
            await known.asend(without=self)

    def find_overdue(self) -> TimeLimitError | None:
        """Return the time limit that the work has passed, if any.

        Raises:
            RolloutError: It is the second call that waits too long, and no LM has answered any other in that time.
        """
        error = self._find_slow_call() or self._find_hopeless_call() or self._find_slow_run()
        self.is_abandoned |= error is not None
        return error

    def _find_slow_call(self) -> TimeLimitError | None:
        now, limit = time.monotonic(), self.patience.call_timeout_s
        oldest = min(self._calls.copy().values(), default=now)
        if limit is None or now - oldest <= limit:
            return None
        if self.health.note_hang(oldest):
            self.is_abandoned = True
            self.health.given_up.set()
            raise RolloutError(
                f"The LM did not answer within {limit:g} s, and in that time it answered no other call. All "
                "finished runs are kept. Check the LM's server, or raise the limit `call_timeout_s`, then run the "
                "same `compile` again to resume."
            )
        return TimeLimitError(f"The LM did not answer within {limit:g} s (`call_timeout_s`).")

    def _find_hopeless_call(self) -> TimeLimitError | None:
        """Do not wait for a call to pass its own limit once the LMs are given up."""
        limit = self.patience.call_timeout_s
        if limit is None or not self._calls or not self.health.given_up.is_set():
            return None
        is_silent = time.monotonic() - self.health.answered_at > limit
        return TimeLimitError("The LM answers no call any more.") if is_silent else None

    def _find_slow_run(self) -> TimeLimitError | None:
        limit, began = self.patience.run_timeout_s, self._run_began
        if limit is None or began is None or self._num_stopped or time.monotonic() - began <= limit:
            return None
        return TimeLimitError(f"The run took more than {limit:g} s (`run_timeout_s`).")

    @property
    def is_unwanted(self) -> bool:
        """Whether nothing is to wait any more, because the work is given up or everything is to end."""
        return self._leaving.is_set() or self.is_abandoned or self.health.given_up.is_set()

    def pause(self, seconds: float | None) -> bool:
        """Wait before the next try, and return whether there is to be one."""
        if seconds is None or self._leaving.wait(seconds):
            return False
        return not self.is_unwanted

    async def apause(self, seconds: float | None) -> bool:
        """The same without blocking the event loop."""
        until = time.monotonic() + (seconds or 0.0)
        while not self._leaving.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_UP_S))
        return self.pause(None if seconds is None else 0)

    @property
    def faults(self) -> list[Exception]:
        """Failures of LMs after which no retry succeeded, the program's own retries included."""
        return [*self._faults, *self._unanswered.values()]

    def note_fault(self, error: Exception) -> None:
        """Note the failure of an LM that has no tries left."""
        self._faults.append(error)

    def note_failed_server(self, breaker: Breaker) -> None:
        """Note whose server failed a call; see `waits_for_server`."""
        self.waits_for_server |= breaker.has_answered and self.patience.outage_s > 0

    def reset(self) -> None:
        """Forget the failures, before all of the work is done again."""
        self._faults.clear()
        self._unanswered.clear()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """DSPy calls this before each LM call that does not come from a predictor of the program."""
        prompt, messages = inputs.get("prompt"), inputs.get("messages")
        known = KnownRequest.of(instance, messages or [{"role": "user", "content": prompt}])
        breaker, text = self.health.throttles.of(instance).breaker, repr([instance.model, prompt, messages])
        self._direct[call_id] = _DirectCall(text, known, breaker)
        if breaker.is_down:
            with suppress(OutageError), self.wait_for_server():
                breaker.hold_back(self._tries[text], lambda: self.is_unwanted, self.patience.outage_s, self.probe)
        self._calls[call_id] = time.monotonic()

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """DSPy calls this after it. A request that is sent again and answered then has not failed."""
        began = self._calls.pop(call_id, 0.0)
        if (direct := self._direct.pop(call_id, None)) is None:
            return
        text, known, breaker = direct
        breaker.note_end(self._tries[text], began, exception, self.patience.outage_s)
        if exception is None:
            self.health.note_answer()
            self._unanswered.pop(text, None)
            breaker.known = known
        elif isinstance(exception, Exception) and fault_of_call(exception) in ("transient", "systemic"):
            self._unanswered[text] = exception
            self.note_failed_server(breaker)


class _DirectCall(NamedTuple):
    """A call under way that is not recorded."""

    text: str
    """Of what is asked, the same for all tries."""
    known: KnownRequest
    breaker: Breaker


_WATCH: ContextVar[Watch | None] = ContextVar("sirius_watch", default=None)


def current_watch() -> Watch | None:
    """The watch over what this context does; `None` where nobody watches."""
    return _WATCH.get()


@contextmanager
def time_run() -> Iterator[None]:
    """Enter around a run; the watch of this context, if there is one, gives it up at its time limit."""
    with nullcontext() if (watch := current_watch()) is None else watch.time_run():
        yield


@contextmanager
def watch_over(watch: Watch) -> Iterator[None]:
    """The context in which `current_watch` is this one."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)
