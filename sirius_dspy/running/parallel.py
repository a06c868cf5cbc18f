"""Map a function over many items in threads: results come as they finish, and nothing that was paid for is lost."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import count, islice
from typing import Any, TypeVar

import dspy

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_S = 0.05
"""How often to ask `overdue` about the items under way."""


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int | None = None,
    *,
    overdue: Callable[[Item], Result | None] | None = None,
    limit: Callable[[], int] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Map in threads that inherit the caller's context, yielding (item, result) as they finish.

    Never more than two items per thread are taken from `items` ahead of time. On the first error, and on an interrupt
    of the caller, no new item starts; what is in flight is paid for, so it is awaited and yielded before the error is
    raised. A second interrupt does not wait.

    Args:
        function: Called with one item.
        items: Taken one by one.
        num_threads: DSPy's setting by default.
        overdue: Called again and again with each item under way. A result that it returns becomes the item's, whose own
            is not waited for any more; its thread is left behind, and does not keep the process from ending. An error
            that it raises becomes the item's.
        limit: Returns how many items may be under way or waiting; by default as many as there is room for.
        on_stop: Called when no new item will start, so that those in flight need not wait for better times.
    """
    threads = num_threads or dspy.settings.num_threads or 8
    source = iter(items)
    error: BaseException | None = None
    running: dict[Future[Result], Item] = {}
    workers = _Workers(threads)
    try:
        while True:
            room = 0 if error else min(2 * threads, limit() if limit else 2 * threads) - len(running)
            for item in islice(source, max(room, 0)):
                running[workers.submit(function, item)] = item
            if not running:
                break
            try:
                done = wait(running, POLL_S if overdue else None, FIRST_COMPLETED).done
            except KeyboardInterrupt as interrupt:
                if error is not None:
                    running.clear()
                    raise
                error, done = interrupt, set()
            for future in done | _give_up(running, overdue, workers):
                item = running.pop(future)
                if (failed := future.exception()) is None:
                    yield item, future.result()
                else:
                    error = error or failed
            if error is not None:
                if on_stop is not None:
                    on_stop()
                running = {future: item for future, item in running.items() if not future.cancel()}
    finally:
        # A caller who leaves early waits for what is in flight.
        if on_stop is not None:
            on_stop()
        running = {future: item for future, item in running.items() if not future.cancel()}
        while running:
            for future in wait(running, POLL_S if overdue else None).done | _give_up(running, overdue, workers):
                del running[future]
        workers.stop()
    if error is not None:
        raise error


def _give_up(
    running: dict[Future[Result], Item], overdue: Callable[[Item], Result | None] | None, workers: _Workers
) -> set[Future[Result]]:
    """Give a result from outside to the futures whose own takes too long, and return these futures."""
    settled = set()
    for future, item in running.items() if overdue is not None else ():
        if not future.running():
            continue
        try:
            result = overdue(item) if overdue is not None else None
        except Exception as error:
            given = workers.settle(future, error=error)
        else:
            given = result is not None and workers.settle(future, result)
        if given:
            settled.add(future)
    return settled


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
        self._queue.put((future, lambda: context.run(_untraced, function, item)))
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


def _untraced(function: Callable[[Item], Result], item: Item) -> Result:
    """Run without MLflow's autolog callback, or thousands of rollouts would each become a trace.

    The callback is known by its module, so that mlflow need not be imported.
    """
    callbacks = [
        callback for callback in dspy.settings.callbacks if not type(callback).__module__.startswith("mlflow.")
    ]
    with dspy.context(callbacks=callbacks):
        return function(item)
