"""A meter that counts LM calls, tokens and seconds of any method, and stops it at a limit.

The meter is part of DSPy's context and not of LMs or programs: a callback counts each LM call before it is made, and
the usage tracker counts the tokens of each answer. So local, scripted and hosted LMs are counted alike, in all threads
that DSPy or this package starts, and the meter does not change checkpoints.
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
    """A method reached its limit.

    Attributes:
        spent: What the method had used by then.
    """

    def __init__(self, message: str, spent: Spent) -> None:
        super().__init__(message)
        self.spent = spent


@dataclass(frozen=True)
class Limits:
    """The limits of a method; `None` means no limit."""

    calls: int | None = None
    """LM calls, counted when they are made. Calls that a cache answers count as well, so that the limit does not
    depend on
    the methods that ran before. The limit is exact."""
    tokens: int | None = None
    """Prompt and completion tokens of answers that no cache gave. Calls in progress at the limit still count."""
    seconds: float | None = None
    """Wall time, checked before each LM call, so fine-tuning jobs are not interrupted."""


class Meter(BaseCallback):
    """Counts the LM calls inside `with Meter(...) as meter:`, and ends the block at a limit.

    The cost is one lock and one addition per call. Meters can be nested; the outer one includes the calls of the inner
    one. Calls in threads that a program starts without DSPy's context are not counted.

    Args:
        limits: Limits of the block; by default, there are none.

    Raises:
        BudgetExceededError: The block made an LM call beyond a limit. Stored results of the method are kept.

    Examples:
        >>> with Meter(Limits(calls=100)) as meter:
        ...     pass
        >>> meter.spent.calls
        0
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._lock = threading.Lock()  # protects the counts, since LMs are called from many threads
        self._calls = 0
        self._answers = _Answers(self._lock)
        self._began = time.perf_counter()
        self._ended: float | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def spent(self) -> Spent:
        """What the block has used so far, or in total after its end."""
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
        """Count a call, or refuse it at a limit; DSPy calls this before each LM call."""
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
        callbacks = [self, *dspy.settings.callbacks]  # first, so that an outer meter does not count a refused call
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
                f"The method reached its limit of {error.reached}. Raise the limit, or use smaller settings; a method "
                "with a `run_dir` resumes where it stopped.",
                self.spent,
            ) from None


class _Stop(BaseException):
    """Unwinds a method that has reached its limit.

    It is not an `Exception`, because DSPy's callbacks, evaluators and optimizers catch those, count a failed example
    and continue.
    """

    def __init__(self, meter: Meter, reached: str) -> None:
        super().__init__(f"limit of {reached}")
        self.meter = meter
        self.reached = reached


class _Answers:
    """Replaces DSPy's usage tracker: adds up the usage by LM, and passes it on to the previous tracker."""

    def __init__(self, lock: threading.Lock) -> None:
        self.parent: Any = None
        self.by_model: dict[str, Usage] = {}
        self._lock = lock

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # DSPy copies the tracker into each of its threads

    def add_usage(self, lm: str, entry: Mapping[str, Any]) -> None:
        """Add the usage of an answer; DSPy calls this for each answer that no cache gave."""
        with self._lock:
            self.by_model[lm] = self.by_model.get(lm, Usage()) + usage_of(entry)
        if self.parent is not None:
            self.parent.add_usage(lm, entry)
