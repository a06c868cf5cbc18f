"""Queues writes to MLflow: in order, on a separate thread, and kept while the server is down.

The sender never waits for the server. After a failure, nothing is sent until `try_again` or `close`, so a server that
never answers costs one timeout and not one per write. A write may be repeated, so it must be idempotent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sirius_dspy.mlflow.patience import LAST_WAIT_S, SHORT_WAITS
from sirius_dspy.redact import redact

logger = logging.getLogger("sirius_dspy.mlflow")  # one name to silence, whatever the file

_REFUSALS = 2
"""How often a write may fail at once while the server answers; the first time it may just have come back."""
_CLOSING_S = 120.0
"""How long `close` waits for a server that is slow and works: a large library on a thin line must not hold a result."""


@dataclass
class _Parcel:
    kind: str
    write: Callable[[], None]
    is_essential: bool
    timeouts: int = 0
    refusals: int = 0


class Outbox:
    """A queue and the thread that empties it.

    Args:
        is_up: Asks the server for something small; true if it answers. Called on the outbox's thread.
        secret: A text that no message may contain, such as a password in a URL.
        capacity: Most writes that are kept; a compile of 20 iterations with 10 agents makes some 1,000.
        slow_s: Seconds after which a failure means a server that does not answer, not one that refuses.
        timeouts: How often a write may fail in this way before it is dropped: the server may answer all others.
    """

    def __init__(
        self,
        is_up: Callable[[], bool],
        *,
        secret: str | None = None,
        capacity: int = 10_000,
        slow_s: float = LAST_WAIT_S / 2,
        timeouts: int = 3,
    ) -> None:
        self._is_up = is_up
        self._secret = secret
        self._capacity = capacity
        self._slow_s = slow_s
        self._timeouts = timeouts
        self._waiting: deque[_Parcel] = deque()
        self._lost: Counter[str] = Counter()
        self._is_down = self._is_closing = self._has_warned = False
        self._changed = threading.Condition()  # protects all of the above: one side sends, the other empties
        self._thread: threading.Thread | None = None

    @property
    def not_written(self) -> Mapping[str, int]:
        """Kind of write to the number of writes that failed or are still waiting."""
        with self._changed:
            return dict(self._lost + Counter(parcel.kind for parcel in self._waiting))

    def send(self, kind: str, write: Callable[[], None], *, is_essential: bool = False) -> None:
        """Queue a write.

        Args:
            kind: What it is, for the message about what was not written.
            write: Called on the outbox's thread, again after an outage.
            is_essential: Everything after it needs it: if it is refused, it is not dropped, and nothing else is tried.
        """
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._lost[kind] += 1
                return
            self._waiting.append(_Parcel(kind, write, is_essential))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sirius-mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def try_again(self) -> None:
        """Send again after an outage, without waiting."""
        with self._changed:
            self._is_down = False
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait until everything is written or the server is down, up to a time limit."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_down or not self._waiting, timeout_s)

    def close(self) -> None:
        """Send the remaining writes, wait for them, and log what was not written."""
        with self._changed:
            was_down = self._is_down
        if was_down:
            SHORT_WAITS.hurry()
        self.try_again()
        self.wait(_CLOSING_S)
        if self._is_down and not was_down:  # what failed may have begun long before this
            SHORT_WAITS.hurry()
            self.try_again()
            self.wait(_CLOSING_S)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            is_idle = self._is_down or not self._waiting
        if self._thread is not None and is_idle:  # else it is left behind, in a request that will not end
            self._thread.join(timeout=1)
        if missing := self.not_written:
            counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(missing.items()))
            logger.warning("MLflow did not accept everything. Not written: %s.", counts)

    def _work(self) -> None:
        while (parcel := self._next()) is not None:
            began = time.monotonic()
            try:
                parcel.write()
            except Exception as error:
                self._handle_failure(parcel, error, time.monotonic() - began)
            else:
                self._done()

    def _next(self) -> _Parcel | None:
        """The first write, as soon as it may be tried; `None` at the end. It stays in the queue until it is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or (self._waiting and not self._is_down))
            return None if self._is_closing else self._waiting[0]

    def _done(self) -> None:
        with self._changed:
            self._waiting.popleft()
            self._changed.notify_all()

    def _handle_failure(self, parcel: _Parcel, error: Exception, seconds: float) -> None:
        """Drop a write that a working server refuses; after anything else, stop trying."""
        self._warn(error)
        is_slow = seconds >= self._slow_s
        answers = not is_slow and self._is_up()
        parcel.timeouts += is_slow
        parcel.refusals += answers
        is_hopeless = parcel.timeouts >= self._timeouts or parcel.refusals >= _REFUSALS
        with self._changed:
            if is_hopeless and not parcel.is_essential:
                self._lost[parcel.kind] += 1
                self._waiting.popleft()
            self._is_down = not answers or (is_hopeless and parcel.is_essential)
            self._changed.notify_all()

    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            logger.debug("MLflow failed again: %s", redact(str(error), self._secret))
            return
        self._has_warned = True
        logger.warning(
            "The work continues, but a write to MLflow failed: %s: %s. It and later writes are kept and repeated. "
            "Check `tracking_uri` and that the server runs. To silence this, call "
            '`logging.getLogger("%s").setLevel("ERROR")`.',
            type(error).__name__,
            redact(str(error), self._secret),
            logger.name,
        )
