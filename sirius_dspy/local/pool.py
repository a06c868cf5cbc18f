"""Engines of several weight sets at once, under a memory limit.

Every distinct weight set has one engine, loaded when it is first asked and unloaded, least recently used first, when
another needs its room. An engine that is answering is never unloaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from sirius_dspy.local.engine import Engine


@dataclass(eq=False)
class _Slot:
    size: int
    engine: Future[Engine] = field(default_factory=Future)
    users: int = 0


class EnginePool:
    """Lends engines by model id. Safe in many threads.

    Who needs room that only busy engines hold waits until one is idle. Meanwhile no new call is let onto a loaded
    engine, so that a steady stream to one weight set cannot keep another out for ever.

    Args:
        load: Starts the engine of a model id.
        size: Bytes that engine will take, known before it is loaded.
        limit: Bytes that all engines may take. One engine is always allowed, however large.
    """

    def __init__(self, load: Callable[[str], Engine], size: Callable[[str], int], limit: int) -> None:
        self.load = load
        self.size = size
        self.limit = limit
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # least recently used first
        self._hungry = 0  # threads that wait for room
        self._changed = threading.Condition()  # guards all of the above, never held while loading or generating

    @contextmanager
    def lend(self, model_id: str) -> Iterator[Engine]:
        """The engine of a model id, kept loaded until the block ends; loads it, and makes room, where needed."""
        slot, mine = self._take(model_id)
        try:
            if mine:
                self._fill(slot, model_id)
            yield slot.engine.result()
        finally:
            self._give_back(model_id, slot)

    def list_loaded(self) -> tuple[str, ...]:
        """Ids of loaded weight sets, least recently used first."""
        with self._changed:
            return tuple(self._slots)

    def unload(self, model_id: str) -> None:
        """Drop an engine: at once if idle, else as soon as its calls have ended. Unknown ids are fine."""
        with self._changed:
            slot = self._slots.pop(model_id, None)
            if slot is None or slot.users:
                return  # the last user closes a slot that is no longer listed
            self._changed.notify_all()
        _close(slot)

    def unload_idle(self) -> None:
        """Drop every engine that is not answering."""
        with self._changed:
            idle = [model_id for model_id, slot in self._slots.items() if not slot.users]
            slots = [self._slots.pop(model_id) for model_id in idle]
            self._changed.notify_all()
        for slot in slots:
            _close(slot)

    def close(self) -> None:
        """Drop all engines; calls under way end in an error."""
        with self._changed:
            slots = list(self._slots.values())
            self._slots.clear()
            self._changed.notify_all()
        for slot in slots:
            _close(slot)

    def _take(self, model_id: str) -> tuple[_Slot, bool]:
        """A slot with one more user, and whether this thread is the one to fill it."""
        size = self.size(model_id)
        with self._changed:
            while self._hungry and model_id in self._slots:
                self._changed.wait()
            evicted: list[_Slot] = []
            if model_id not in self._slots:
                evicted = self._make_room(model_id, size)
            mine = model_id not in self._slots
            slot = self._slots.setdefault(model_id, _Slot(size))
            self._slots.move_to_end(model_id)
            slot.users += 1
        for old in evicted:
            _close(old)
        return slot, mine

    def _make_room(self, model_id: str, size: int) -> list[_Slot]:
        """Wait for and unlist what must go; stops early if another thread has brought the model in meanwhile."""
        evicted: list[_Slot] = []
        self._hungry += 1
        try:
            while model_id not in self._slots and self._slots and self._count_bytes() + size > self.limit:
                idle = next((key for key, slot in self._slots.items() if not slot.users), None)
                if idle is None:
                    self._changed.wait()
                else:
                    evicted.append(self._slots.pop(idle))
        finally:
            self._hungry -= 1
            self._changed.notify_all()
        return evicted

    def _count_bytes(self) -> int:
        return sum(slot.size for slot in self._slots.values())

    def _fill(self, slot: _Slot, model_id: str) -> None:
        try:
            slot.engine.set_result(self.load(model_id))
        except BaseException as error:
            slot.engine.set_exception(error)
            raise

    def _give_back(self, model_id: str, slot: _Slot) -> None:
        """One user less; a broken or unlisted slot ends with its last user."""
        with self._changed:
            slot.users -= 1
            listed = self._slots.get(model_id) is slot
            if listed and _is_broken(slot):
                del self._slots[model_id]
                listed = False
            ended = not listed and not slot.users
            self._changed.notify_all()
        if ended:
            _close(slot)


def _is_broken(slot: _Slot) -> bool:
    if slot.engine.exception() is not None:
        return True
    return slot.engine.result().failure is not None


def _close(slot: _Slot) -> None:
    if slot.engine.done() and slot.engine.exception() is None:
        slot.engine.result().close()
