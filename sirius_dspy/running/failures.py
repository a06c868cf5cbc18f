"""Whose fault it is that a call failed: the one place that knows, asked by every stage.

- *own*: the program's. Its code or a tool of it raised, or a reply did not parse. The run is a failed one.
- *refusal*: the LM will not answer this request, which may be the request's fault: too long, against a policy, with a
  parameter that it does not know. A failed run, unless every run ends so.
- *passing*: the LM or the network failed. The call is tried again after a while; a run that never got its answer says
  nothing about the program, so it is *unfinished* and no trajectory is made of it.
- *systemic*: credentials, credit or configuration. Every other call would fail as well.

Errors are told apart by DSPy's own classes, wherever they are in a chain of causes, since programs and metrics wrap
what they catch.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal, TypeVar

from dspy.clients._http import finite_seconds
from dspy.clients.engines.litellm_errors import to_lm15_error
from dspy.clients.errors import wrap_error
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMError,
    LMProviderError,
    LMUnexpectedError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from sirius_dspy import checks
from sirius_dspy.errors import PromptTooLongError, RolloutError, SiriuSError, TimeLimitError

Fault = Literal["own", "refusal", "passing", "systemic"]
"""Whose fault a failure is; see the module."""

Result = TypeVar("Result")

SYSTEMIC = (LMAuthError, LMBillingError, LMConfigurationError, LMUnsupportedModelError)
"""Errors of an LM that every call would share."""

NO_SUCH_ADDRESS = (404, 405)
"""HTTP states of a server that is not an LM's, or not under this address."""

IN_A_ROW = 10
"""If so many runs fail in the LM and none ends otherwise, the LM is out of order."""

LONGEST_WAIT_S = 30.0
"""Between two tries, unless the server asks for more."""

LOOK_UP_S = 0.1
"""How often a wait under asyncio looks whether it is still wanted."""

LONGEST_HINT_S = 300.0
"""A server that asks for more patience than this has failed."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: causes, contexts that were not suppressed, and members of groups."""
    found, seen = [error], set()
    while found:
        current = found.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        found += [current.__cause__ or (None if current.__suppress_context__ else current.__context__)]
        found += getattr(current, "exceptions", ()) if isinstance(current, BaseExceptionGroup) else ()


def fault_of(error: BaseException | None) -> Fault:
    """Whose fault an error is that came out of a program, a metric or an augmenter."""
    causes = list(chain(error))
    if any(isinstance(cause, PromptTooLongError) for cause in causes):  # DSPy wraps what an engine raises
        return "own"
    return next((_fault_of_lm(cause) for cause in causes if isinstance(cause, LMError)), "own")


def fault_of_call(error: Exception) -> Fault:
    """Whose fault an error is that came out of a predictor's call.

    LMs that DSPy does not manage raise errors of their own, of the network or of an SDK. In a tool of the program they
    would be the program's; in a call of an LM they are the LM's.
    """
    if any(isinstance(cause, LMError | PromptTooLongError) for cause in chain(error)):
        return fault_of(error)
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return "passing"
    mapped = to_lm15_error(error)
    return "own" if mapped is error else fault_of(wrap_error(mapped, model=""))


def _fault_of_lm(error: LMError) -> Fault:
    if isinstance(error, SYSTEMIC) or error.status in NO_SUCH_ADDRESS:
        return "systemic"
    if is_retryable_lm_error(error) or isinstance(error, LMUnexpectedError):
        return "passing"
    if isinstance(error, ContextWindowExceededError):
        return "own"
    # The class itself is what DSPy raises for a body that is no reply; the other subclasses refuse the request.
    is_no_reply = type(error) is LMProviderError and not 400 <= (error.status or 0) < 500
    return "passing" if is_no_reply else "refusal"


def raise_ours(error: BaseException | None) -> None:
    """Raise the first error of this package in a chain, since it is about the compile and not about one run.

    Raises:
        SiriuSError: There is one.
    """
    causes = list(chain(error))
    if any(isinstance(cause, PromptTooLongError) for cause in causes):
        return
    for cause in causes:
        if isinstance(cause, SiriuSError):
            raise cause


@dataclass(frozen=True)
class Unfinished:
    """A run that did not end, because the LM or the network failed: neither a success nor a failure."""

    example_key: str
    kind: str
    """Class name of the exception."""
    message: str
    run: str = ""
    iteration: int = 0
    sample: int = 0
    seed: int = 0
    origin: str = "rollout"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)


@dataclass(frozen=True)
class Patience:
    """How long a compile waits for its LMs.

    Attributes:
        retries: Tries after the first for a call that failed in the LM or the network, those that the LM object makes
            by itself (`num_retries`) included. The wait doubles each time and is never shorter than the server's
            `Retry-After`.
        call_timeout_s: Seconds for one LM call; `None` is for ever.
        run_timeout_s: Seconds for one run of the program with its metric, waits included; `None` is for ever.
        max_unfinished: Examples whose runs or repairs may stay without an end in one stage before the compile stops and
            names them. A validation is always complete.
        first_wait_s: Seconds before the first retry, of which up to half are taken off at random.
    """

    retries: int = 4
    call_timeout_s: float | None = 600.0
    run_timeout_s: float | None = 3600.0
    max_unfinished: int = 0
    first_wait_s: float = 0.5

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check("Patience", vars(self), _PATIENCE)

    def wait_s(self, tries: int, error: BaseException) -> float | None:
        """Seconds before the next try; `None` if the server wants more than anybody has.

        Args:
            tries: How many have failed.
            error: The last one's.
        """
        hints = [finite_seconds(getattr(cause, "retry_after", None)) for cause in chain(error)]
        hint = next((seconds for seconds in hints if seconds is not None), 0.0)
        if hint > LONGEST_HINT_S:
            return None
        # Jitter: calls that failed together must not come back together.
        own = min(self.first_wait_s * 2 ** (tries - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
        return max(own, hint + random.uniform(0.0, 0.1) * hint)


_PATIENCE = {
    "retries": checks.whole(0),
    "call_timeout_s": checks.optional(checks.number(above=0)),
    "run_timeout_s": checks.optional(checks.number(above=0)),
    "max_unfinished": checks.whole(0),
    "first_wait_s": checks.number(0),
}


class Health:
    """How the LMs of one compile are doing; one object for all its threads and stages."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self.answered_at = time.monotonic()
        self._hung_at: float | None = None
        self._in_a_row = 0
        self._lock = threading.Lock()  # protects the count: runs end in many threads

    def answered(self) -> None:
        """An LM answered."""
        self.answered_at = time.monotonic()

    def ended(self) -> None:
        """A run ended in another way than by a failure of the LM."""
        with self._lock:
            self._in_a_row = 0

    def hung(self, since: float) -> bool:
        """A call has waited too long; whether nobody is answered any more.

        One call may hang because of what it asks. Two without any answer between them are no coincidence.

        Args:
            since: When the call began.
        """
        with self._lock:
            before, self._hung_at = self._hung_at, time.monotonic()
            return before is not None and self.answered_at < min(since, before)

    def failed(self, what: str, error: BaseException | None) -> None:
        """A run failed in the LM.

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
            "the LM and its server, then run the same `compile` again to go on from there."
        ) from error


class Watch(BaseCallback):
    """Looks after one piece of work: which calls are under way, and what failed in them.

    It is found through the context, by what records calls. As a DSPy callback, it hears of those that are not recorded:
    a metric's, and those of an LM that a program calls directly.

    Args:
        patience: How often to try, and how long.
        health: Of the LMs.
        leaving: Set when all work is to end, because of an interrupt or an error: nobody waits for another try then.
    """

    def __init__(self, patience: Patience, health: Health, leaving: threading.Event | None = None) -> None:
        self.patience = patience
        self.health = health
        self._leaving = leaving or threading.Event()
        self._faults: list[Exception] = []
        self.has_retried = False
        """Whether retries of a single call were in vain, so that there is no point in trying the whole again."""
        self.is_abandoned = False
        self._run_began: float | None = None
        self._calls: dict[Any, float] = {}
        self._asked: dict[str, str] = {}
        self._unanswered: dict[str, Exception] = {}
        self._numbers = count()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run, which has a time limit of its own; inside another, it is part of that."""
        if self._run_began is not None:
            yield
            return
        self._run_began = time.monotonic()
        try:
            yield
        finally:
            self._run_began = None

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around each LM call.

        Raises:
            TimeLimitError: Nobody waits for this work any more.
        """
        if self.is_abandoned:
            raise TimeLimitError("The run took too long and was given up.")
        key = next(self._numbers)
        self._calls[key] = time.monotonic()
        try:
            yield
            self.health.answered()
        finally:
            self._calls.pop(key, None)

    def overdue(self) -> TimeLimitError | None:
        """The limit that the work has passed, if any.

        Raises:
            RolloutError: It is the second call that waits too long, and no LM has answered any other in that time.
        """
        now, limit = time.monotonic(), self.patience.call_timeout_s
        oldest = min(self._calls.copy().values(), default=now)
        if limit is not None and now - oldest > limit:
            self.is_abandoned = True
            if self.health.hung(oldest):
                self.health.given_up.set()
                raise RolloutError(
                    f"The LM did not answer within {limit:g} s, and in that time it answered no other call. All "
                    "finished runs are kept. Check the LM's server, or raise the limit `call_timeout_s`, then run the "
                    "same `compile` again to go on from there."
                )
            return TimeLimitError(f"The LM did not answer within {limit:g} s (`call_timeout_s`).")
        is_hopeless = limit is not None and now - self.health.answered_at > limit and self.health.given_up.is_set()
        if self._calls and is_hopeless:
            self.is_abandoned = True
            return TimeLimitError("The LM answers no call any more.")
        limit = self.patience.run_timeout_s
        if limit is not None and self._run_began is not None and now - self._run_began > limit:
            self.is_abandoned = True
            return TimeLimitError(f"The run took more than {limit:g} s (`run_timeout_s`).")
        return None

    def pause(self, seconds: float | None) -> bool:
        """Wait before another try; false if there is to be none."""
        if seconds is None or self._leaving.wait(seconds):
            return False
        return not self.health.given_up.is_set() and not self.is_abandoned

    async def apause(self, seconds: float | None) -> bool:
        """The same without blocking the event loop."""
        until = time.monotonic() + (seconds or 0.0)
        while not self._leaving.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_UP_S))
        return self.pause(None if seconds is None else 0)

    @property
    def faults(self) -> list[Exception]:
        """Failures of LMs that no retry has healed, the program's own retries included."""
        return [*self._faults, *self._unanswered.values()]

    def note(self, error: Exception) -> None:
        """An LM failed, and that was its last try."""
        self._faults.append(error)

    def forget(self) -> None:
        """Begin anew with all of the work."""
        self._faults.clear()
        self._unanswered.clear()

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before each LM call that is no predictor's of the program."""
        self._calls[call_id] = time.monotonic()
        self._asked[call_id] = repr([instance.model, inputs.get("prompt"), inputs.get("messages")])

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Called by DSPy after it. What is asked again, and answered then, has not failed."""
        self._calls.pop(call_id, None)
        asked = self._asked.pop(call_id, "")
        if exception is None:
            self.health.answered()
            self._unanswered.pop(asked, None)
        elif isinstance(exception, Exception) and fault_of_call(exception) in ("passing", "systemic"):
            self._unanswered[asked] = exception


_WATCH: ContextVar[Watch | None] = ContextVar("sirius_watch", default=None)


def current_watch() -> Watch | None:
    """The watch over what this context does; `None` where nobody watches."""
    return _WATCH.get()


@contextmanager
def timed_run() -> Iterator[None]:
    """Around a run that a watch, if there is one, is to end at its time limit."""
    with nullcontext() if (watch := current_watch()) is None else watch.running():
        yield


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """The context in which `current_watch` is this one."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


class Tries:
    """The tries at one LM call.

    Args:
        watch: Of the work that the call is part of; without one there is a single try.
        lm: Whose own retries count.
    """

    def __init__(self, watch: Watch | None, lm: Any) -> None:
        self.watch = watch or Watch(Patience(retries=0), Health())
        self._own = lm.num_retries if hasattr(lm, "_engine_spec") else 0  # DSPy retries only LMs that it manages
        self._failed = 0

    def call(self, function: Callable[[], Result]) -> Result:
        """Call until it is answered, or fails for good."""
        while True:
            try:
                with self.watch.calling():
                    return function()
            except Exception as error:
                if not self._is_worth(error) or not self.watch.pause(self._wait_s(error)):
                    self._give_up(error)
                    raise

    async def acall(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """The same under asyncio."""
        while True:
            try:
                with self.watch.calling():
                    return await function()
            except Exception as error:
                if not self._is_worth(error) or not await self.watch.apause(self._wait_s(error)):
                    self._give_up(error)
                    raise

    def _is_worth(self, error: Exception) -> bool:
        if fault_of_call(error) != "passing":
            return False
        self._failed += 1 + (self._own if is_retryable_lm_error(error) else 0)
        return self._failed <= self.watch.patience.retries

    def _wait_s(self, error: Exception) -> float | None:
        return self.watch.patience.wait_s(self._failed, error)

    def _give_up(self, error: Exception) -> None:
        if (fault := fault_of_call(error)) in ("passing", "systemic"):
            self.watch.note(error)
            self.watch.has_retried |= fault == "passing"
