"""Map a function over many items in threads: results come as they finish, and nothing that was paid for is lost."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from itertools import chain, count, islice
from typing import Any, Generic, TypeVar

import dspy

from sirius_dspy.running.interrupts import Interrupts

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_S = 0.05
"""How often to look for an interrupt, and to ask `overdue` about the items under way."""

GATHER_S = 0.0003
"""How long to gather results after the first, for each thread: less than the threads need for the items that wait."""

MAX_GATHER_S = 0.02
"""How long to gather at most."""


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    overdue: Callable[[Item], Result | None] | None = None,
    limit: Callable[[], int] | None = None,
    held: Callable[[int], bool] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Map in threads that inherit the caller's context, yielding (item, result) as they finish.

    As `parallel_batches`, one result at a time.
    """
    batches = parallel_batches(function, items, num_threads, overdue=overdue, limit=limit, held=held, on_stop=on_stop)
    with closing(batches):
        for batch in batches:
            yield from batch


def parallel_batches(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    overdue: Callable[[Item], Result | None] | None = None,
    limit: Callable[[], int] | None = None,
    held: Callable[[int], bool] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[list[tuple[Item, Result]], None, None]:
    """Map in threads that inherit the caller's context, yielding together (item, result) of those that finish together.

    Results are gathered for at most 20 ms, since a caller that keeps each by itself takes the threads' time.

    Never more than two items per thread are taken from `items` ahead of time. On the first error, and on Ctrl-C, no
    new item starts; what is in flight is paid for, so it is awaited and yielded before the error is raised, and the
    caller is not cut off while it keeps a batch. A second Ctrl-C does not wait.

    Args:
        function: Called with one item.
        items: Taken one by one.
        num_threads: DSPy's setting by default.
        overdue: Called again and again with each item under way. A result that it returns becomes the item's, whose own
            is not waited for any more; its thread is left behind, and does not keep the process from ending. An error
            that it raises becomes the item's.
        limit: Returns how many items may be under way or waiting; by default as many as there is room for.
        held: Called again and again with the number of items under way. While it returns true, no new item starts, and
            those that no thread has begun wait with the others.
        on_stop: Called when no new item will start, so that those in flight need not wait for better times.
    """
    source = iter(items)
    error: BaseException | None = None
    pool = _Pool(function, num_threads or dspy.settings.num_threads or 8, overdue)
    with Interrupts() as interrupts:
        try:
            while True:
                if error is None and interrupts.take():
                    error = KeyboardInterrupt()
                    pool.cancel_waiting(on_stop)
                    pool.announce_stop()
                is_held = error is None and held is not None and held(len(pool.running))
                if is_held:
                    pool.take_back()
                elif error is None:
                    pool.fill(source, limit)
                if not pool.running:
                    if not is_held:
                        break
                    time.sleep(POLL_S)
                    continue
                taken = pool.take(pool.wait())
                failures = (failure for _, future in taken if (failure := future.exception()) is not None)
                error = error or next(failures, None)
                if batch := [(item, future.result()) for item, future in taken if future.exception() is None]:
                    yield batch
                if error is not None:
                    pool.cancel_waiting(on_stop)
        finally:
            pool.cancel_waiting(on_stop)
            if interrupts.number > 1:
                pool.running.clear()
            pool.announce_stop()
            pool.drain()  # a caller who leaves early waits for what is in flight
            if interrupts.take() and error is None:
                raise KeyboardInterrupt
    if error is not None:
        raise error


class _Pool(Generic[Item, Result]):
    """The items under way in the threads of one map."""

    def __init__(
        self, function: Callable[[Item], Result], threads: int, overdue: Callable[[Item], Result | None] | None
    ) -> None:
        self.running: dict[Future[Result], Item] = {}
        self._function = function
        self._threads = threads
        self._overdue = overdue
        self._workers = _Workers(threads)
        self._ended: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
        self._taken_back: deque[Item] = deque()
        self._is_announced = False
        self._asked_overdue = 0.0

    def fill(self, source: Iterator[Item], limit: Callable[[], int] | None) -> None:
        """Submit as many items as there is room for, those that were taken back first."""
        most = 2 * self._threads if limit is None else min(2 * self._threads, limit())
        room = max(most - len(self.running), 0)
        again = [self._taken_back.popleft() for _ in range(min(room, len(self._taken_back)))]
        for item in chain(again, islice(source, room - len(again))):
            future = self._workers.submit(self._function, item)
            self.running[future] = item
            future.add_done_callback(self._ended.put)

    def wait(self) -> set[Future[Result]]:
        """Wait a moment until items have ended, and return all that have; there may be none yet."""
        ended: set[Future[Result]] = set()
        with suppress(queue.Empty):
            ended.add(self._ended.get(timeout=POLL_S))
            time.sleep(min(GATHER_S * self._threads, MAX_GATHER_S))
            while True:
                ended.add(self._ended.get_nowait())
        return ended | self._settle_overdue()

    def take(self, ended: Collection[Future[Result]]) -> list[tuple[Item, Future[Result]]]:
        """Remove futures, and return them in the order of their items: the first error is the one raised."""
        return [(self.running.pop(future), future) for future in [*self.running] if future in ended]

    def take_back(self) -> None:
        """Remove the items that no thread has begun, until there is room for them again."""
        before, self.running = self.running, {}
        waiting = []
        for future, item in before.items():
            if future.cancel():
                waiting.append(item)
            else:
                self.running[future] = item
        self._taken_back.extendleft(reversed(waiting))

    def cancel_waiting(self, on_stop: Callable[[], None] | None) -> None:
        """Forget the items that no thread has begun."""
        if on_stop is not None:
            on_stop()
        self.running = {future: item for future, item in self.running.items() if not future.cancel()}

    def announce_stop(self) -> None:
        """Say once what is still waited for, if anything is."""
        if self.running and not self._is_announced:
            self._is_announced = True
            runs = "1 run" if len(self.running) == 1 else f"{len(self.running)} runs"
            logger.warning("Stopping; %s in flight, Ctrl-C again to drop them.", runs)

    def drain(self) -> None:
        """Wait for all items under way, and let the threads end."""
        while self.running:
            self.take(self.wait())
        self._workers.stop()

    def _settle_overdue(self) -> set[Future[Result]]:
        """Give the items that take too long a result from outside, and return their futures."""
        if self._overdue is None or (now := time.monotonic()) - self._asked_overdue < POLL_S:
            return set()
        self._asked_overdue = now
        return {future for future, item in self.running.items() if future.running() and self._settle(future, item)}

    def _settle(self, future: Future[Result], item: Item) -> bool:
        try:
            result = None if self._overdue is None else self._overdue(item)
        except Exception as error:
            return self._workers.settle(future, error=error)
        return result is not None and self._workers.settle(future, result)


class _Workers:
    """Threads that take work from a queue. Unlike an executor's, they never keep the interpreter from ending."""

    def __init__(self, number: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._number = number
        self._started = count()
        self._alive = 0
        self._lock = threading.Lock()  # protects futures: two threads may want to settle one

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Queue one item."""
        future: Future[Result] = Future()
        context = contextvars.copy_context()
        self._queue.put((future, lambda: context.run(_run_untraced, function, item)))
        if self._alive < self._number:
            self._start()
        return future

    def settle(self, future: Future[Result], result: Any = None, error: BaseException | None = None) -> bool:
        """Give a running future its outcome from outside, and start a thread in place of the one that is stuck."""
        if not self._finish(future, result, error):
            return False
        self._start()
        return True

    def stop(self) -> None:
        """Let the threads end when they have nothing to do."""
        for _ in range(self._alive):
            self._queue.put(None)

    def _start(self) -> None:
        self._alive += 1
        threading.Thread(target=self._work, name=f"sirius_{next(self._started)}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            future, work = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result, error = work(), None
            except BaseException as raised:  # also what unwinds a metered block goes to the thread that waits
                result, error = None, raised
            if not self._finish(future, result, error):
                return  # another thread has this one's place
            del job, future, work, result, error  # or the last item would live as long as the thread

    def _finish(self, future: Future[Any], result: Any, error: BaseException | None) -> bool:
        with self._lock:
            if future.done():
                return False
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            return True


def _run_untraced(function: Callable[[Item], Result], item: Item) -> Result:
    """Run without MLflow's autolog callback, or thousands of rollouts would each become a trace.

    The callback is known by its module, so that mlflow need not be imported.
    """
    callbacks = [
        callback for callback in dspy.settings.callbacks if not type(callback).__module__.startswith("mlflow.")
    ]
    with dspy.context(callbacks=callbacks):
        return function(item)
