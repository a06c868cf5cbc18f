"""One meter for every method: LM calls, tokens and seconds, and a limit that really ends the work.

The meter hangs on DSPy's context, not on LMs or programs: a callback hears of each LM call before it is made, and the
usage tracker of what each answer took. So a `LocalLM`, a scripted LM and a hosted one count alike, in all threads that
DSPy or this package starts, and a checkpoint of a metered program is like any other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import dspy
from dspy.utils.callback import BaseCallback

from sirius_dspy.dspy_internals import usage_tracker
from sirius_dspy.errors import SiriuSError
from sirius_dspy.optimizer.spent import Spent, cost_of, usage_of
from sirius_dspy.trajectory import Usage


class BudgetExceededError(SiriuSError, RuntimeError):
    """A method wanted more than its limit.

    Attributes:
        spent: What it had used by then.
    """

    def __init__(self, message: str, spent: Spent) -> None:
        super().__init__(message)
        self.spent = spent


@dataclass(frozen=True)
class Limits:
    """What a method may use; `None` is no limit."""

    calls: int | None = None
    """LM calls, counted when they are made, those that a cache answers included: what a method may ask must not depend
    on which method asked before it. The limit is kept to the call."""
    tokens: int | None = None
    """Prompt and completion tokens of answers that no cache gave. Calls in flight when it is reached still count."""
    seconds: float | None = None
    """Wall time, looked at before each LM call: a fine-tuning job is not interrupted."""


class Meter(BaseCallback):
    """Counts the LM calls made inside `with Meter(...) as meter:`, and ends the block at a limit.

    Cheap enough for everything: a lock and an addition per call. Meters nest; the outer one counts what the inner does.
    Threads that a program starts itself, without DSPy's context, are not seen, as nowhere in this package.

    Args:
        limits: By default none.

    Raises:
        BudgetExceededError: The block wanted one more LM call beyond a limit. What a method had stored by then, stays.

    Examples:
        >>> with Meter(Limits(calls=100)) as meter:
        ...     pass
        >>> meter.spent.calls
        0
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._lock = threading.Lock()  # protects the counts: LMs are called from many threads
        self._calls = 0
        self._answers = _Answers(self._lock)
        self._began = time.perf_counter()
        self._ended: float | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def spent(self) -> Spent:
        """What the block has used up to now, or in all once it has ended."""
        seconds = (self._ended or time.perf_counter()) - self._began
        with self._lock:
            usages, calls = list(self._answers.by_model.items()), self._calls
        total = sum((usage for _, usage in usages), Usage())
        return Spent(
            calls=calls,
            cached_calls=calls - total.calls,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            usd=cost_of(usages, {}),
            seconds=seconds,
        )

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Called by DSPy before each LM call; refuses the one that would go beyond a limit."""
        spent = self.spent
        with self._lock:
            if reached := self._describe_limit(spent):
                raise _Stop(self, reached)
            self._calls += 1

    def _describe_limit(self, spent: Spent) -> str:
        limits = self.limits
        if limits.calls is not None and self._calls >= limits.calls:
            return f"{limits.calls} LM calls"
        if limits.tokens is not None and spent.tokens >= limits.tokens:
            return f"{limits.tokens} tokens"
        if limits.seconds is not None and spent.seconds >= limits.seconds:
            return f"{limits.seconds} seconds"
        return ""

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._answers.parent = usage_tracker()
        callbacks = [self, *dspy.settings.callbacks]  # first, so that an outer meter hears of no refused call
        self._context = dspy.context(callbacks=callbacks, usage_tracker=self._answers)
        self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)
        self._ended = time.perf_counter()
        if isinstance(error, _Stop) and error.meter is self:
            raise BudgetExceededError(
                f"The method wanted more than its limit of {error.reached}. Give it more, or smaller settings; a "
                "method with a `run_dir` goes on from where it stopped.",
                self.spent,
            ) from None


class _Stop(BaseException):
    """Unwinds a method that is over its limit.

    Not an `Exception`, because DSPy's callbacks, evaluators and optimizers catch every one of those, call it a failed
    example and go on.
    """

    def __init__(self, meter: Meter, reached: str) -> None:
        super().__init__(f"limit of {reached}")
        self.meter = meter
        self.reached = reached


class _Answers:
    """What DSPy takes for its usage tracker: sums up by LM, and passes on to the one that was there before."""

    def __init__(self, lock: threading.Lock) -> None:
        self.parent: Any = None
        self.by_model: dict[str, Usage] = {}
        self._lock = lock

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # DSPy copies the tracker into each of its threads

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        """Called by DSPy for each answer that no cache gave."""
        with self._lock:
            self.by_model[lm] = self.by_model.get(lm, Usage()) + usage_of(entry)
        if self.parent is not None:
            self.parent.add_usage(lm, entry)
