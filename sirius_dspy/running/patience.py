"""How long to wait for LMs, and when to give up on all of them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from sirius_dspy import checks
from sirius_dspy.errors import RolloutError
from sirius_dspy.running.faults import LONGEST_HINT_S, asked_wait_s
from sirius_dspy.running.throttle import Throttles

IN_A_ROW = 10
"""If so many runs fail in the LM and none ends otherwise, the LM is out of order."""

LONGEST_WAIT_S = 30.0
"""Between two tries, unless the server asks for more."""


@dataclass(frozen=True)
class Patience:
    """How long a compile waits for its LMs.

    Attributes:
        retries: Tries after the first for a call that failed in the LM or the network. Those that the LM object makes
            itself (`num_retries`) count. The wait doubles each time and is never shorter than the server's
            `Retry-After`.
        call_timeout_s: Time limit for one LM call, in seconds; `None` for no limit.
        run_timeout_s: Time limit for one run of the program with its metric, in seconds; `None` for no limit. Waits for
            retries count, those for a server that is down do not.
        outage_s: How long to wait for an LM that had answered and then answers no call any more, in seconds. Only a
            probe now and then goes out meanwhile. By default a quarter of an hour, which most outages do not reach; 0
            to stop as soon as ten runs in a row have failed.
        max_unfinished: Examples whose runs or repairs may stay without an end in one stage before the compile stops and
            names them. A validation is always complete.
        first_wait_s: Seconds before the first retry; up to half of them are taken off at random.
    """

    retries: int = 4
    call_timeout_s: float | None = 600.0
    run_timeout_s: float | None = 3600.0
    outage_s: float = 900.0
    max_unfinished: int = 0
    first_wait_s: float = 0.5

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("Patience", vars(self), _SETTINGS)

    def wait_s(self, tries: int, error: BaseException) -> float | None:
        """Seconds before the next try; `None` if the server asks for more than `LONGEST_HINT_S`.

        Args:
            tries: How many have failed.
            error: The last one's.
        """
        hint = asked_wait_s(error)
        if hint > LONGEST_HINT_S:
            return None
        # Jitter: calls that failed together must not come back together.
        wait = min(self.first_wait_s * 2 ** (tries - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
        return max(wait, hint + random.uniform(0.0, 0.1) * hint)


_SETTINGS = {
    "retries": checks.whole(0),
    "call_timeout_s": checks.optional(checks.number(above=0)),
    "run_timeout_s": checks.optional(checks.number(above=0)),
    "outage_s": checks.number(0),
    "max_unfinished": checks.whole(0),
    "first_wait_s": checks.number(0),
}


class Health:
    """Whether the LMs of one compile answer; one object for all its threads and stages."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.throttles = Throttles()
        self.answered_at = time.monotonic()
        self._hung_at: float | None = None
        self._outages_elsewhere = 0
        self._in_a_row = 0
        self._lock = threading.Lock()  # protects the count: runs end in many threads

    @property
    def outages(self) -> int:
        """Grows whenever a server is found to be down, and with each item of another process that saw it."""
        return self.throttles.outages + self._outages_elsewhere

    def note_outage(self) -> None:
        """Note an item of another process during which a server was found to be down."""
        with self._lock:
            self._outages_elsewhere += 1

    def note_answer(self) -> None:
        """Note that an LM answered."""
        self.answered_at = time.monotonic()

    def note_end(self) -> None:
        """Note a run that ended in another way than by a failure of the LM."""
        with self._lock:
            self._in_a_row = 0

    def note_hang(self, since: float) -> bool:
        """Note a call that has waited too long, and return whether the LMs answer no call any more.

        One call may hang because of what it asks. Two without any answer between them are no coincidence.

        Args:
            since: When the call began.
        """
        with self._lock:
            before, self._hung_at = self._hung_at, time.monotonic()
            return before is not None and self.answered_at < min(since, before)

    def note_failure(self, what: str, error: BaseException | None) -> None:
        """Note a run that failed in the LM.

        Raises:
            RolloutError: So did many before it, and none ended otherwise.
        """
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row < IN_A_ROW:
                return
        self.given_up.set()
        raise RolloutError(
            f"The LM failed in {IN_A_ROW} runs in a row, in the last one with {what} All finished runs are kept. Check "
            "the LM and its server, then run the same `compile` again to resume."
        ) from error
