"""A pool of engines for several weight sets, with a memory limit.

Each weight set has one engine, which is loaded at its first call at the latest. If another engine needs the memory, the
least recently used idle engine is unloaded. A busy engine is never unloaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
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
    """Lends engines by model id. Thread-safe.

    If only busy engines could be unloaded, a call waits until one of them is idle. Meanwhile, loaded engines accept no
    new calls, so that a steady stream of calls to one weight set cannot block another one forever.

    Args:
        load: Loads the engine of a model id.
        size: Returns the bytes that an engine will need, before it is loaded.
        limit: Maximum number of bytes for all engines. One engine is always allowed, whatever its size.
        free: Returns the free bytes of the machine, which other processes use, too.
    """

    def __init__(
        self, load: Callable[[str], Engine], size: Callable[[str], int], limit: int, free: Callable[[], int]
    ) -> None:
        self.load = load
        self.size = size
        self.limit = limit
        self.free = free
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # least recently used first
        self._hungry = 0  # number of threads that wait for memory
        self._changed = threading.Condition()  # guards the attributes above; never held while loading or generating

    @contextmanager
    def lend(self, model_id: str) -> Iterator[Engine]:
        """Yield the engine of a model id, loading it if needed, and keep it loaded until the block ends."""
        slot, mine = self._take(model_id)
        try:
            if mine:
                self._fill(slot, model_id)
            yield slot.engine.result()
        finally:
            self._give_back(model_id, slot)

    def list_loaded(self) -> tuple[str, ...]:
        """List the ids of loaded weight sets, least recently used first."""
        with self._changed:
            return tuple(self._slots)

    def unload(self, model_id: str) -> None:
        """Unload an engine, at once if it is idle, otherwise after its calls. Unknown ids are ignored."""
        with self._changed:
            slot = self._slots.pop(model_id, None)
            if slot is None or slot.users:
                return  # its last user closes an unlisted slot
            self._changed.notify_all()
        _close(slot)

    def unload_idle(self) -> None:
        """Unload every idle engine."""
        with self._changed:
            idle = [model_id for model_id, slot in self._slots.items() if not slot.users]
            slots = [self._slots.pop(model_id) for model_id in idle]
            self._changed.notify_all()
        for slot in slots:
            _close(slot)

    def close(self) -> None:
        """Unload all engines; calls in progress raise an error."""
        with self._changed:
            slots = list(self._slots.values())
            self._slots.clear()
            self._changed.notify_all()
        for slot in slots:
            _close(slot)

    def _take(self, model_id: str) -> tuple[_Slot, bool]:
        """Add a user to a slot, and return the slot and whether this thread must fill it."""
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
        """Wait for idle engines and unlist them to make room, unless another thread loads the model meanwhile."""
        evicted: list[_Slot] = []
        self._hungry += 1
        try:
            while model_id not in self._slots and self._slots and not self._fits(size, evicted):
                idle = next((key for key, slot in self._slots.items() if not slot.users), None)
                if idle is None:
                    self._changed.wait()
                else:
                    evicted.append(self._slots.pop(idle))
        finally:
            self._hungry -= 1
            self._changed.notify_all()
        return evicted

    def _fits(self, size: int, evicted: list[_Slot]) -> bool:
        """Whether an engine can be loaded once the evicted ones, which still use their memory, are closed."""
        return _count_bytes(self._slots.values()) + size <= self.limit and self.free() + _count_bytes(evicted) >= size

    def _fill(self, slot: _Slot, model_id: str) -> None:
        try:
            slot.engine.set_result(self.load(model_id))
        except BaseException as error:
            slot.engine.set_exception(error)
            raise

    def _give_back(self, model_id: str, slot: _Slot) -> None:
        """Remove a user from a slot; the last user closes a broken or unlisted slot."""
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


def _count_bytes(slots: Iterable[_Slot]) -> int:
    return sum(slot.size for slot in slots)


def _is_broken(slot: _Slot) -> bool:
    if slot.engine.exception() is not None:
        return True
    return slot.engine.result().failure is not None


def _close(slot: _Slot) -> None:
    if slot.engine.done() and slot.engine.exception() is None:
        slot.engine.result().close()
