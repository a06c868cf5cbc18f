"""How many calls of one LM are under way: as many as its server bears, found by additive increase.

A server that is too busy (429, 503) lowers the number: it halves it while it refuses all calls, and takes little off
where it refuses one now and then. Its `Retry-After` holds back all calls, not only the one that was refused, unless
that is an exception. Answers raise the number again, by one for as many answers as there may be calls, and ten times
more slowly where it comes near the number at which the server refused many.

References:
    Chiu and Jain, Analysis of the increase and decrease algorithms for congestion avoidance, 1989.
    Alizadeh et al., Data center TCP (DCTCP), 2010: to lower the number by the share of what was refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dspy.utils.exceptions import LMError

from sirius_dspy.running.faults import LONGEST_HINT_S, asked_wait_s, chain
from sirius_dspy.running.outage import LOOK_UP_S, Breaker

logger = logging.getLogger(__name__)

BUSY = (429, 503, 529)
"""HTTP states of a server that has too much to do."""

NEWEST = 1 / 16
"""Weight of the last call in the share of refused ones."""

MANY = 0.25
"""If the server refuses so large a share, all calls heed its `Retry-After`, and come back slowly to that number."""

IsUnwanted = Callable[[], bool]
"""Whether a call is not worth waiting for any more, because its work is given up or everything is to end."""

_held: ContextVar[tuple[Throttle, ...]] = ContextVar("sirius_turns", default=())
"""The throttles whose turn this context has; a call inside another one does not wait for it."""


class Throttle:
    """Gives the calls of one LM their turn. Thread-safe.

    Args:
        name: Of the LM, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = math.inf
        """Calls that may be under way; no limit before a server was busy."""
        self.breaker = Breaker(name)
        """Holds the calls back while the server is down."""
        self._under_way: set[_Call] = set()
        self._too_many = math.inf
        self._refused = 1.0  # share of the last calls; a first refusal is taken for a server that refuses all
        self._opens_at = 0.0
        self._lowered_at = 0.0
        self._changed = threading.Condition()  # guards all of the above

    @contextmanager
    def turn(self, is_unwanted: IsUnwanted) -> Iterator[None]:
        """Wait until a call may start, and learn from how it ends. An unwanted call starts at once."""
        with self._changed:
            while (wait := self._wait_s()) > 0 and not is_unwanted():
                self._changed.wait(min(wait, LOOK_UP_S))
            call = self._begin(is_unwanted)
        with self._learn(call):
            yield

    @asynccontextmanager
    async def aturn(self, is_unwanted: IsUnwanted) -> AsyncIterator[None]:
        """The same without blocking the event loop."""
        while True:
            with self._changed:
                if (wait := self._wait_s()) <= 0 or is_unwanted():
                    call = self._begin(is_unwanted)
                    break
            await asyncio.sleep(min(wait, LOOK_UP_S))
        with self._learn(call):
            yield

    @property
    def is_held(self) -> bool:
        """Whether this context is inside a call of this LM."""
        return self in _held.get()

    def _wait_s(self) -> float:
        """Return for how long no call may start; `LOOK_UP_S` where one under way must end before."""
        if self.is_held:
            return 0.0
        if (held_back := self._opens_at - time.monotonic()) > 0:
            return held_back
        # What is given up may hang for ever, and must not keep others from starting.
        is_full = len(self._under_way) + 1 > self.limit and (
            1 + sum(not call.is_unwanted() for call in self._under_way) > self.limit
        )
        return LOOK_UP_S if is_full else 0.0

    def _begin(self, is_unwanted: IsUnwanted) -> _Call:
        call = _Call(time.monotonic(), is_unwanted)
        self._under_way.add(call)
        return call

    @contextmanager
    def _learn(self, call: _Call) -> Iterator[None]:
        held = _held.set((*_held.get(), self))
        try:
            yield
            with self._changed:
                self._raise_limit()
        except Exception as error:
            with self._changed:
                self._note_failure(error, call)
            raise
        finally:
            _held.reset(held)
            with self._changed:
                self._under_way.remove(call)
                self._changed.notify_all()

    def _raise_limit(self) -> None:
        self._refused -= NEWEST * self._refused
        step = 1 / self.limit
        is_near = 0.75 * self._too_many < self.limit + step and self.limit < self._too_many
        self.limit += step / 10 if is_near else step

    def _note_failure(self, error: Exception, call: _Call) -> None:
        """Lower the limit if the server is busy, once for all calls that started under the same limit."""
        if not any(isinstance(cause, LMError) and cause.status in BUSY for cause in chain(error)):
            return
        share, now, hint = self._refused, time.monotonic(), asked_wait_s(error)
        refuses_many = share >= MANY
        self._refused += NEWEST * (1 - share)
        if refuses_many and hint <= LONGEST_HINT_S:
            self._opens_at = max(self._opens_at, now + hint)
        if call.began >= self._lowered_at:
            before = min(self.limit, len(self._under_way)) if refuses_many else self.limit
            self._too_many = before if refuses_many else math.inf
            self.limit, self._lowered_at = max(1.0, before * (1 - share / 2)), now
            if math.isinf(before):
                return
            logger.info("%s is busy: at most %d calls at a time.", self.name, self.limit)


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A call that has its turn."""

    began: float
    is_unwanted: IsUnwanted


class Throttles:
    """The throttle of each LM."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Throttle] = {}
        self._lock = threading.Lock()  # two threads may ask first

    @property
    def outages(self) -> int:
        """How often a server seemed to be down."""
        with self._lock:
            return sum(throttle.breaker.outages for throttle in self._of.values())

    def of(self, lm: Any) -> Throttle:
        """Return the throttle of an LM; LM objects with the same model at the same server share it."""
        settings = getattr(lm, "kwargs", None) or {}
        name = str(getattr(lm, "model", type(lm).__name__))
        key = (name, str(settings.get("api_base") or settings.get("base_url") or ""))
        with self._lock:
            return self._of.setdefault(key, Throttle(name))
