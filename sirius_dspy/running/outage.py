"""Waits for an LM whose server is down, instead of failing run after run.

A circuit breaker: after calls failed one after the other without any answer between them, no call goes out but a probe
now and then. The first answer lets all of them out again. An LM that has not answered before is not waited for: then it
is more likely that its address or its settings are wrong.

The last calls of a stage may all fail because of what they ask. So a probe is a request that was answered before, where
one is known. If it is answered, the calls that failed are at fault, and not the server.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sirius_dspy.errors import OutageError, TimeLimitError
from sirius_dspy.running.faults import LONGEST_HINT_S, asked_wait_s, describe_error, fault_of_call
from sirius_dspy.running.known import KnownRequest

logger = logging.getLogger(__name__)

FEWEST_FAILURES = 8
"""If so many tries fail with no answer in between, the server is down; where one in ten fails, that is no chance."""

FEWEST_CALLS = 3
"""They belong to so many different calls: one may always fail because of what it asks."""

FIRST_PROBE_S = 1.0
"""Seconds before the first probe; doubled after each one that fails."""

LONGEST_PROBE_S = 60.0
"""Between two probes, unless the server asks for more."""

MEMORY_S = 60.0
"""After so long without another failure, the last ones say nothing any more."""

LOOK_UP_S = 0.1
"""How often a call that waits looks whether it is still wanted."""


@dataclass(eq=False)
class Asked:
    """One call, with all tries at it."""

    is_at_fault: bool = False
    """Whether it failed although the server was there: then its failures say nothing about the server."""


Send = Callable[[KnownRequest], None]


class Breaker:
    """Lets the calls of one LM out while its server is there, and probes while it is not. Thread-safe.

    Args:
        name: Of the LM, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outages = 0
        """How often the server seemed to be down."""
        self.has_answered = False
        self.known: KnownRequest | None = None
        """A request that was answered before."""
        self._failed: list[Asked] = []  # the call of each failed try since the last answer
        self._failed_at = 0.0
        self._down_at = math.inf
        self._is_proven = False
        self._wait_s = FIRST_PROBE_S
        self._probe_at = 0.0
        self._probe: _Probe | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # guards all of these

    @property
    def is_down(self) -> bool:
        """Whether calls are held back."""
        return self._down_at < math.inf

    def hold_back(self, call: Asked, is_unwanted: Callable[[], bool], outage_s: float, send: Send) -> None:
        """Wait until a call may go out: the server is there, or only this call can tell.

        Args:
            call: What wants to go out.
            is_unwanted: Whether the call is not worth waiting for any more.
            outage_s: How long the server may be down.
            send: Sends a known request.

        Raises:
            OutageError: It has been down for longer, or it is down and the call is unwanted.
        """
        while self.is_down:
            while (wait := self._ask(call, is_unwanted, outage_s)) > 0:
                time.sleep(min(wait, LOOK_UP_S))
            if (known := self._to_probe()) is None:
                return
            try:
                with self.learn(call, outage_s, is_known=True):
                    send(known)
            except Exception as error:
                if not self._may_probe_again(error):
                    return

    async def ahold_back(
        self,
        call: Asked,
        is_unwanted: Callable[[], bool],
        outage_s: float,
        asend: Callable[[KnownRequest], Awaitable[None]],
    ) -> None:
        """The same without blocking the event loop."""
        while self.is_down:
            while (wait := self._ask(call, is_unwanted, outage_s)) > 0:
                await asyncio.sleep(min(wait, LOOK_UP_S))
            if (known := self._to_probe()) is None:
                return
            try:
                with self.learn(call, outage_s, is_known=True):
                    await asend(known)
            except Exception as error:
                if not self._may_probe_again(error):
                    return

    def _to_probe(self) -> KnownRequest | None:
        """Return what to send before the call itself: nothing if the server is there, or no known request."""
        return self.known if self.is_down else None

    def _may_probe_again(self, error: Exception) -> bool:
        """Whether a known request left open if the server is there: it failed of that, or the LM takes none."""
        return fault_of_call(error) == "transient" or self.known is None

    def _ask(self, call: Asked, is_unwanted: Callable[[], bool], outage_s: float) -> float:
        """Return for how long the call has to wait; with 0 it may go out, as a probe if the server is down."""
        with self._lock:
            if not self.is_down:
                return 0.0
            now = time.monotonic()
            if now - self._down_at > outage_s or is_unwanted():
                raise self._give_up(now - self._down_at)
            if self._probe_at > now or (self._probe is not None and self._probe.is_awaited(now)):
                return max(self._probe_at - now, LOOK_UP_S)
            self._probe = _Probe(call, now, is_unwanted)
            return 0.0

    @contextmanager
    def learn(self, call: Asked, outage_s: float, *, is_known: bool = False) -> Iterator[None]:
        """Enter around a call that was let out.

        Args:
            call: As in `hold_back`.
            outage_s: Likewise; with 0, no server is waited for.
            is_known: Whether the known request is sent in its place.
        """
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            self.note_end(call, began, error, outage_s, is_known=is_known)
            raise
        self.note_end(call, began, None, outage_s, is_known=is_known)

    def note_end(
        self, call: Asked, began: float, error: BaseException | None, outage_s: float, *, is_known: bool = False
    ) -> None:
        """Note how a call ended; `learn` does so.

        Args:
            call: As in `hold_back`.
            began: When it began, by `time.monotonic`.
            error: What it raised.
            outage_s: As in `learn`.
            is_known: Likewise.
        """
        # What was given up here may not even have been sent.
        fault = fault_of_call(error) if isinstance(error, Exception) and not isinstance(error, TimeLimitError) else None
        with self._lock:
            if is_known and fault == "program":
                self.known = None  # such as an LM of the user that only takes what adapters send
            elif error is None or fault in ("program", "refusal"):
                self._note_answer(began, is_known and error is None)
            elif fault == "transient" and outage_s > 0 and not (call.is_at_fault and not self._is_probe(call)):
                self._note_failure(call, error)
            if self._is_probe(call):
                self._probe = None

    def _note_answer(self, began: float, is_known: bool) -> None:
        self.has_answered = True
        if self.is_down and began < self._down_at:
            return  # it says how the server was, not how it is
        if self.is_down and is_known and not self._is_proven:
            logger.warning("%s answers other calls, so it is the calls that fail.", self.name)
            for call in self._failed:
                call.is_at_fault = True
        elif self.is_down:
            logger.warning("%s answers again, after %s.", self.name, _describe_s(time.monotonic() - self._down_at))
        self._down_at = math.inf
        self._failed.clear()

    def _note_failure(self, call: Asked, error: BaseException) -> None:
        now = time.monotonic()
        if now - self._failed_at > MEMORY_S:
            self._failed.clear()
        self._failed.append(call)
        self._failed_at, self._error = now, error
        if self.is_down:
            if self._is_probe(call):
                self._is_proven = True
                self._plan_probe(error, 2 * self._wait_s)
        elif self.has_answered and len(self._failed) >= FEWEST_FAILURES and len(set(self._failed)) >= FEWEST_CALLS:
            self._down_at, self._is_proven = now, False
            self.outages += 1
            self._plan_probe(error, FIRST_PROBE_S)
            what = _describe(error)
            logger.warning("%s answers no call any more, so the next ones wait until it does. %s", self.name, what)

    def _is_probe(self, call: Asked) -> bool:
        return self._probe is not None and self._probe.call is call

    def _plan_probe(self, error: BaseException, wait_s: float) -> None:
        self._wait_s = min(wait_s, LONGEST_PROBE_S)
        hint = min(asked_wait_s(error), LONGEST_HINT_S)
        # Jitter: several processes must not come back together.
        self._probe_at = time.monotonic() + max(self._wait_s * random.uniform(0.75, 1.25), hint)

    def _give_up(self, down_s: float) -> OutageError:
        error = OutageError(
            f"{self.name} has answered no call for {_describe_s(down_s)}. {_describe(self._error)} All finished runs "
            "are kept. When its server is there again, run the same `compile` again to resume. "
            "`Patience(outage_s=...)` says how long to wait for it."
        )
        error.__cause__ = self._error
        return error


@dataclass(frozen=True)
class _Probe:
    """The call that tries whether the server is there."""

    call: Asked
    began: float
    is_unwanted: Callable[[], bool]

    def is_awaited(self, now: float) -> bool:
        """Whether another one has to wait for it; one that hangs or was given up may never end."""
        return now - self.began < LONGEST_PROBE_S and not self.is_unwanted()


def _describe(error: BaseException | None) -> str:
    if error is None:
        return ""
    failure = describe_error(error)
    return f"The last one failed with {failure.kind}: {failure.message}"


def _describe_s(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
