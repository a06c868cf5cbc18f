"""Do work that asks LMs over many items: retry while an LM fails, and tell apart what did not end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from sirius_dspy.errors import TimeLimitError, UnfinishedError, WorkerError
from sirius_dspy.running.faults import describe_error, fault_of, raise_if_systemic, raise_sirius_error
from sirius_dspy.running.parallel import parallel_batches
from sirius_dspy.running.patience import Health, Patience
from sirius_dspy.running.watch import Watch, watch_over
from sirius_dspy.trajectory import Failure

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Broken:
    """Stands for the result of an item whose work did not end."""

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
    limit: Callable[[], int] | None = None,
    held: Callable[[int], bool] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Result | Broken], None, None]:
    """Map like `parallel_map`; see `attempt_batches`."""
    batches = attempt_batches(
        function, items, num_threads, patience=patience, health=health, limit=limit, held=held, on_stop=on_stop
    )
    with closing(batches):
        for batch in batches:
            yield from batch


def attempt_batches(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    patience: Patience,
    health: Health,
    limit: Callable[[], int] | None = None,
    held: Callable[[int], bool] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[list[tuple[Item, Result | Broken]], None, None]:
    """Map like `parallel_batches`; work that did not end, because an LM failed or did not answer, gives a `Broken`.

    What an outage broke before it was seen to be one is done again after all others.

    Args:
        function: It may raise what an LM or the network raised. An LM failure that it catches itself counts as well,
            and its result is dropped.
        items: Taken one by one.
        num_threads: DSPy's setting by default.
        patience: How often to try, and how long.
        health: Of the LMs; all stages of a compile share it.
        limit: See `parallel_batches`.
        held: See `parallel_batches`.
        on_stop: See `parallel_batches`.

    Raises:
        RolloutError: An LM refused for lack of credentials, credit or configuration, failed many times in a row, or
            answers no call any more. What was in flight is yielded before.
    """
    once = partial(
        _attempt_once, function, num_threads=num_threads, patience=patience, health=health, limit=limit, held=held
    )
    outages = health.outages
    broken: list[tuple[Item, Result | Broken]] = []
    with closing(once(items, on_stop=on_stop)) as batches:
        try:
            for batch in batches:
                ended: list[tuple[Item, Result | Broken]] = []
                for item, result in batch:
                    (broken if isinstance(result, Broken) else ended).append((item, result))
                yield ended
        except (Exception, KeyboardInterrupt):
            yield broken
            raise
    if health.outages > outages:  # it took some failures to see that the server was down
        yield from once([item for item, _ in broken], on_stop=on_stop)
    elif broken:
        yield broken


def _attempt_once(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_threads: int | None,
    patience: Patience,
    health: Health,
    limit: Callable[[], int] | None,
    held: Callable[[int], bool] | None,
    on_stop: Callable[[], None] | None,
) -> Generator[list[tuple[Item, Result | Broken]], None, None]:
    def work(piece: _Piece[Item]) -> Result | Broken:
        with watch_over(piece.watch):
            return _attempt(function, piece)

    def overdue(piece: _Piece[Item]) -> Result | Broken | None:
        error = piece.watch.find_overdue()
        return None if error is None else _broken(error, piece.watch)

    leaving = threading.Event()

    def leave() -> None:
        leaving.set()
        if on_stop is not None:
            on_stop()

    pieces = (_Piece(item, Watch(patience, health, leaving)) for item in items)
    has_limit = patience.call_timeout_s is not None or patience.run_timeout_s is not None
    batches = parallel_batches(
        work,
        pieces,
        num_threads,
        overdue=overdue if has_limit else None,
        limit=limit,
        held=held,
        on_stop=leave,
    )
    with closing(batches):
        for batch in batches:
            yield [(piece.item, result) for piece, result in batch]


def _attempt(function: Callable[[Item], Result], piece: _Piece[Item]) -> Result | Broken:
    """Do the work, and again where an LM failed that nothing has retried yet."""
    watch, tries = piece.watch, 0
    while True:
        watch.reset()
        result: Result | None = None
        error: BaseException | None = None
        try:
            result = function(piece.item)
        except UnfinishedError as raised:
            error = raised.__cause__ or raised
        except TimeLimitError as raised:  # a worker in another process gave the item up
            if watch.is_abandoned:
                raise
            return _broken(raised, watch)
        except WorkerError as raised:
            if not raised.is_about_item:
                raise
            return Broken(describe_error(raised))  # the LMs are as well as before
        except Exception as raised:
            raise_sirius_error(raised)
            if fault_of(raised) not in ("transient", "systemic"):
                raise
            error = raised
        fault = next(iter(watch.faults), error)
        if fault is None:
            return result  # type: ignore[return-value]  # the function returned it
        raise_if_systemic(fault)
        tries += 1
        if watch.has_retried or tries > watch.patience.retries or not watch.pause(watch.patience.wait_s(tries, fault)):
            return _broken(fault, watch)


def _broken(error: BaseException, watch: Watch) -> Broken:
    failure = describe_error(error)
    if not watch.waits_for_server:
        watch.health.note_failure(f"{failure.kind}: {failure.message}", error)
    return Broken(failure)
