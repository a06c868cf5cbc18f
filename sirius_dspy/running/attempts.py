"""Work that asks LMs, over many items: tried again while the LM fails, and kept apart when it never ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from sirius_dspy.errors import RolloutError, UnfinishedError
from sirius_dspy.running.failures import Fault, Health, Patience, Watch, fault_of, fault_of_call, raise_ours, watched
from sirius_dspy.running.parallel import parallel
from sirius_dspy.running.record import Recording, describe
from sirius_dspy.trajectory import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Broken:
    """What there is of an item whose work did not end: why."""

    failure: Failure


@dataclass(eq=False)
class _Piece(Generic[Item]):
    """An item and the watch over it."""

    item: Item
    watch: Watch


def attempt_all(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    patience: Patience,
    health: Health,
    most: Callable[[], int] | None = None,
) -> Generator[tuple[Item, Result | Broken], None, None]:
    """Map like `parallel`; an item whose work did not end, because an LM failed or did not answer, gives a `Broken`.

    Args:
        function: It may raise what an LM or the network raised. A failure that it catches itself counts as well: what
            it returns then is not what it does.
        items: Taken one by one.
        num_threads: DSPy's setting by default.
        patience: How often to try, and how long.
        health: Of the LMs, over all stages of a compile.
        most: See `parallel`.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration, failed many times in a row, or
            answered nobody any more. What was in flight is yielded before.
    """

    def work(piece: _Piece[Item]) -> Result | Broken:
        with watched(piece.watch):
            return _attempt(function, piece)

    def overdue(piece: _Piece[Item]) -> Result | Broken | None:
        error = piece.watch.overdue()
        return None if error is None else _broken(error, health)

    leaving = threading.Event()
    pieces = (_Piece(item, Watch(patience, health, leaving)) for item in items)
    limited = patience.call_timeout_s is not None or patience.run_timeout_s is not None
    results = parallel(work, pieces, num_threads, overdue=overdue if limited else None, most=most, on_stop=leaving.set)
    with closing(results):
        for piece, result in results:
            yield piece.item, result


def _attempt(function: Callable[[Item], Result], piece: _Piece[Item]) -> Result | Broken:
    """Do the work, and again where an LM failed that nothing has retried yet."""
    watch, tries = piece.watch, 0
    while True:
        watch.forget()
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function(piece.item)
        except UnfinishedError as raised:
            error = raised.__cause__ or raised
        except Exception as raised:
            raise_ours(raised)
            if fault_of(raised) not in ("passing", "systemic"):
                raise
            error = raised
        fault = next(iter(watch.faults), error)
        if fault is None:
            return result  # type: ignore[return-value]  # the function returned it
        raise_if_systemic(fault)
        tries += 1
        if watch.has_retried or tries > watch.patience.retries or not watch.pause(watch.patience.wait_s(tries, fault)):
            return _broken(fault, watch.health)


def _broken(error: BaseException, health: Health) -> Broken:
    failure = describe(error)
    health.failed(f"{failure.kind}: {failure.message}", error)
    return Broken(failure)


def check_ended(recording: Recording) -> None:
    """Refuse a recorded run that did not end, also where the program caught what its LM raised.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration.
        UnfinishedError: The LM or the network failed; `attempt_all` makes a `Broken` of it.
        SiriuSError: One of our own errors came through the program.
    """
    raise_ours(recording.error)
    found: list[tuple[Fault, Exception]] = [(fault_of_call(error), error) for error in recording.faults]
    if recording.error is not None:
        found.append((fault_of(recording.error), recording.error))
    for _, error in found:
        raise_if_systemic(error)
    for fault, error in found:
        if fault == "passing":
            failure = describe(error)
            raise UnfinishedError(
                f"The run did not end, because the LM or the network failed: {failure.kind}: {failure.message}"
            ) from error


def raise_if_systemic(error: BaseException | None) -> None:
    """Raise what would fail every other call, too.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration.
        SiriuSError: One of our own errors is in the chain.
    """
    raise_ours(error)
    fault = fault_of_call(error) if isinstance(error, Exception) else "own"
    if fault == "systemic" and error is not None:
        failure = describe(error)
        raise RolloutError(
            f"{failure.kind}: {failure.message} All finished rollouts are kept. Correct the LM's credentials, credit "
            "or settings, then run the same `compile` again to go on from there."
        ) from error
