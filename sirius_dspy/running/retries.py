"""Retries of single LM calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from dspy.utils.exceptions import is_retryable_lm_error

from sirius_dspy.dspy_internals import is_managed
from sirius_dspy.running.faults import fault_of_call
from sirius_dspy.running.known import KnownRequest
from sirius_dspy.running.outage import Asked
from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.prompt import Messages
from sirius_dspy.running.watch import Watch

Result = TypeVar("Result")


class Retries:
    """Makes one LM call, and makes it again while it fails for the moment.

    Args:
        watch: Of the work that the call is part of; without one there is no retry.
        lm: The LM to call; its own retries count.
    """

    def __init__(self, watch: Watch | None, lm: Any) -> None:
        self.watch = watch or Watch(Patience(retries=0), Health())
        self._throttle = self.watch.health.throttles.of(lm)
        self._breaker = self._throttle.breaker
        self._lm = lm
        self._asked = Asked()
        self._per_call = 1 + (lm.num_retries if is_managed(lm) else 0)
        self._failed = 0

    def call(self, function: Callable[[], Result]) -> Result:
        """Call until there is an answer or no try left; one for which the server is down is no try.

        Raises:
            OutageError: The server was down for too long.
        """
        while True:
            if self._is_held_back:
                with self.watch.wait_for_server():
                    self._breaker.hold_back(*self._hold, self.watch.probe)
            try:
                with self._learn(), self._throttle.turn(lambda: self.watch.is_unwanted), self.watch.time_call():
                    return function()
            except Exception as error:
                if not self._may_retry(error) or not (self._is_held_back or self.watch.pause(self._wait_s(error))):
                    self._give_up(error)
                    raise

    async def acall(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """The same under asyncio."""
        while True:
            if self._is_held_back:
                with self.watch.wait_for_server():
                    await self._breaker.ahold_back(*self._hold, self.watch.aprobe)
            try:
                with self._learn():
                    async with self._throttle.aturn(lambda: self.watch.is_unwanted):
                        with self.watch.time_call():
                            return await function()
            except Exception as error:
                if not self._may_retry(error) or not (
                    self._is_held_back or await self.watch.apause(self._wait_s(error))
                ):
                    self._give_up(error)
                    raise

    def remember(self, messages: Messages) -> None:
        """Keep a request that was answered, to send it again when the server seems to be down."""
        self._breaker.known = KnownRequest.of(self._lm, messages)

    @property
    def _is_held_back(self) -> bool:
        return self._breaker.is_down and not self._throttle.is_held

    @property
    def _hold(self) -> tuple[Asked, Callable[[], bool], float]:
        return self._asked, lambda: self.watch.is_unwanted, self.watch.patience.outage_s

    def _learn(self) -> AbstractContextManager[None]:
        return self._breaker.learn(self._asked, self.watch.patience.outage_s)

    def _may_retry(self, error: Exception) -> bool:
        if fault_of_call(error) != "transient":
            return False
        if self._breaker.is_down and not self._asked.is_at_fault:
            return True
        self._failed += self._per_call if is_retryable_lm_error(error) else 1
        return self._failed <= self.watch.patience.retries

    def _wait_s(self, error: Exception) -> float | None:
        return self.watch.patience.wait_s(self._failed, error)

    def _give_up(self, error: Exception) -> None:
        if (fault := fault_of_call(error)) in ("transient", "systemic"):
            self.watch.note_fault(error)
            self.watch.has_retried |= fault == "transient"
            self.watch.note_failed_server(self._breaker)
