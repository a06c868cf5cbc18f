"""Waits for an LM whose server is down, instead of failing run after run.

A circuit breaker: after calls failed one after the other without any answer between them, no call goes out but a probe
now and then. The first answer lets all of them out again. An LM that has not answered before is not waited for: then it
is more likely that its address or its settings are wrong.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sirius_dspy.errors import OutageError
from sirius_dspy.running.faults import LONGEST_HINT_S, asked_wait_s, describe_error, fault_of_call

logger = logging.getLogger(__name__)

FEWEST_FAILURES = 8
"""If so many tries fail, or half of those under way if that is more, with no answer in between, the server is down."""

FEWEST_CALLS = 3
"""They belong to so many different calls: one may always fail because of what it asks."""

FIRST_PROBE_S = 1.0
"""Seconds before the first probe; doubled after each one that fails."""

LONGEST_PROBE_S = 60.0
"""Between two probes, unless the server asks for more."""

LOOK_UP_S = 0.1
"""How often a call that waits looks whether it is still wanted."""


class Breaker:
    """Lets the calls of one LM out while its server is there, and probes while it is not. Thread-safe.

    Args:
        name: Of the LM, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outages = 0
        """How often the server was found to be down."""
        self._has_answered = False
        self._under_way = 0
        self._failed: list[object] = []  # the call of each failed try since the last answer
        self._failing_since = 0.0
        self._down_at = math.inf
        self._wait_s = FIRST_PROBE_S
        self._probe_at = 0.0
        self._probe: object = None
        self._error: Exception | None = None
        self._lock = threading.Lock()  # guards all of these

    @property
    def is_down(self) -> bool:
        """Whether calls are held back."""
        return self._down_at < math.inf

    def admit(self, call: object, is_unwanted: Callable[[], bool], outage_s: float) -> None:
        """Wait until a call may go out.

        Args:
            call: The same for all tries at one call.
            is_unwanted: Whether the call is not worth waiting for any more.
            outage_s: How long the server may be down.

        Raises:
            OutageError: It has been down for longer, or it is down and the call is unwanted.
        """
        while (wait := self._ask(call, is_unwanted, outage_s)) > 0:
            time.sleep(min(wait, LOOK_UP_S))

    async def aadmit(self, call: object, is_unwanted: Callable[[], bool], outage_s: float) -> None:
        """The same without blocking the event loop."""
        while (wait := self._ask(call, is_unwanted, outage_s)) > 0:
            await asyncio.sleep(min(wait, LOOK_UP_S))

    def _ask(self, call: object, is_unwanted: Callable[[], bool], outage_s: float) -> float:
        """Return for how long the call has to wait; with 0 it may go out, as a probe if the server is down."""
        with self._lock:
            if not self.is_down:
                return 0.0
            down_s = time.monotonic() - self._failing_since
            if down_s > outage_s or is_unwanted():
                raise self._give_up(down_s)
            wait = self._probe_at - time.monotonic()
            if self._probe is not None or wait > 0:
                return max(wait, LOOK_UP_S)
            self._probe = call
            return 0.0

    @contextmanager
    def learn(self, call: object, outage_s: float) -> Iterator[None]:
        """Enter around a call that was let out.

        Args:
            call: As in `admit`.
            outage_s: Likewise; with 0, no server is waited for.
        """
        began = time.monotonic()
        with self._lock:
            self._under_way += 1
        try:
            yield
            self._note_answer(began)
        except Exception as error:
            fault = fault_of_call(error)
            if fault in ("program", "refusal"):
                self._note_answer(began)
            elif fault == "transient" and outage_s > 0:
                self._note_failure(call, error)
            raise
        finally:
            with self._lock:
                self._under_way -= 1
                self._probe = None if self._probe is call else self._probe

    def _note_answer(self, began: float) -> None:
        with self._lock:
            self._has_answered = True
            if self.is_down and began < self._down_at:
                return  # it says how the server was, not how it is
            if self.is_down:
                logger.warning("%s answers again, after %s.", self.name, _duration(self._failing_since))
            self._down_at = math.inf
            self._failed.clear()

    def _note_failure(self, call: object, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._failed:
                self._failing_since = now
            self._failed.append(call)
            self._error = error
            if self.is_down:
                if self._probe is call:
                    self._plan_probe(error, 2 * self._wait_s)
            elif self._has_answered and self._is_conspicuous():
                self._down_at = now
                self.outages += 1
                self._plan_probe(error, FIRST_PROBE_S)
                what = _describe(error)
                logger.warning("%s answers no call any more, so the next ones wait until it does. %s", self.name, what)

    def _is_conspicuous(self) -> bool:
        is_much = len(self._failed) >= max(FEWEST_FAILURES, self._under_way / 2)
        return is_much and len(set(self._failed)) >= FEWEST_CALLS

    def _plan_probe(self, error: Exception, wait_s: float) -> None:
        self._wait_s = min(wait_s, LONGEST_PROBE_S)
        hint = min(asked_wait_s(error), LONGEST_HINT_S)
        # Jitter: several processes must not come back together.
        self._probe_at = time.monotonic() + max(self._wait_s * random.uniform(0.75, 1.25), hint)

    def _give_up(self, down_s: float) -> OutageError:
        error = OutageError(
            f"{self.name} has answered no call for {_seconds(down_s)}. {_describe(self._error)} All finished runs are "
            "kept. When its server is there again, run the same `compile` again to resume. `Patience(outage_s=...)` "
            "says how long to wait for it."
        )
        error.__cause__ = self._error
        return error


def _describe(error: Exception | None) -> str:
    if error is None:
        return ""
    failure = describe_error(error)
    return f"The last one failed with {failure.kind}: {failure.message}"


def _duration(since: float) -> str:
    return _seconds(time.monotonic() - since)


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
