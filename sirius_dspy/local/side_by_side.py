"""Training of several agents at the same time, on a GPU each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from sirius_dspy.local.children import Progress

Item = TypeVar("Item")


class SideBySide:
    """Runs pieces of work in threads, whose hooks are called in the thread that waits for them.

    Args:
        stop: Event that ends the work; it is set if waiting is interrupted or a hook raises.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def relay(self, hook: Progress | None) -> Progress | None:
        """Return a hook for the work, which has the waiting thread call the given one."""
        if hook is None:
            return None
        return lambda *step: self._calls.put(partial(hook, *step))

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all, and raise the first error, after the others have ended: what they finished is kept."""
        with ThreadPoolExecutor(len(works), thread_name_prefix="training") as threads:
            futures = [threads.submit(work) for work in works]
            try:
                while not (all(future.done() for future in futures) and self._calls.empty()):
                    with suppress(queue.Empty):
                        self._calls.get(timeout=0.1)()
            except BaseException:
                self._stop.set()
                raise
        for future in futures:
            future.result()


def deal(items: Iterable[Item], size: Callable[[Item], int], count: int) -> list[list[Item]]:
    """Deal items into at most so many hands of similar size, the largest items first."""
    hands: list[list[Item]] = [[] for _ in range(count)]
    for item in sorted(items, key=size, reverse=True):
        min(hands, key=lambda hand: sum(map(size, hand))).append(item)
    return [hand for hand in hands if hand]
