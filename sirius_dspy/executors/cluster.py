"""`RayExecutor`: workers on the machines of a Ray cluster."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from sirius_dspy import checks
from sirius_dspy.dspy_internals import usage_tracker
from sirius_dspy.errors import MissingDependencyError, WorkerError
from sirius_dspy.executors.answers import take_answer
from sirius_dspy.executors.packing import pack
from sirius_dspy.executors.runner import Runner
from sirius_dspy.executors.shipment import Shipment, ShippingExecutor
from sirius_dspy.running.executor import Item, Result, Shipped, Workers
from sirius_dspy.running.patience import Patience

logger = logging.getLogger(__name__)

START_S = 60.0
"""How long an actor may take to begin, its machine included, before the work is done by fewer."""

THREADS = 1024
"""Calls that an actor takes at a time; how many there are is decided by the threads of the compile."""


@dataclass(frozen=True)
class RayExecutor(ShippingExecutor):
    """Runs the program, the metric and repairs on a Ray cluster.

    Only the process of the compile writes the experience library. The workers need the same packages, and the modules
    of program and metric, for which Ray's `runtime_env` is the usual way. Calls of runs that had not ended are not kept
    on disk, as they are with threads and processes, so that a kill repeats these runs from their beginning.

    Attributes:
        address: Of the cluster, as `ray.init` takes it. `None` uses the one that the process is connected to, and
            otherwise starts Ray on this machine.
        num_workers: Actors.
        resources: What each actor reserves, as Ray's `.options` takes it, e.g. `{"num_cpus": 1}` or
            `{"resources": {"site": 1}}`.
        max_restarts: How many workers may be lost in one compile, e.g. with their machine. What they had begun is
            done by others.
    """

    address: str | None = None
    num_workers: int = 2
    resources: Mapping[str, Any] = field(default_factory=lambda: {"num_cpus": 1})
    max_restarts: int = 8

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
            MissingDependencyError: Ray is not installed.
        """
        checks.check("RayExecutor", vars(self), _KINDS)
        _import_ray()

    @contextmanager
    def start(self) -> Iterator[Workers]:
        """The context in which the actors live. They begin with the first item, and end with the context."""
        ray = _import_ray()
        is_own = not ray.is_initialized()
        if is_own:
            ray.init(address=self.address, log_to_driver=False)
        crew = _Crew(ray, self)
        try:
            yield crew
        finally:
            crew.stop()
            if is_own:
                ray.shutdown()


_KINDS = {
    "address": checks.optional(checks.TEXT),
    "num_workers": checks.whole(1),
    "resources": checks.table("options of a Ray actor, such as `{'num_cpus': 1}`", lambda value: True),
    "max_restarts": checks.whole(0),
}


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "Ray is not installed. Install it with `pip install 'sirius-dspy[ray]'`, here and on the machines of the "
            "cluster."
        ) from error
    return ray


class _Actor:
    """What runs in a process of the cluster."""

    def __init__(self) -> None:
        self._usage: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
        self._lock = threading.Lock()  # protects what was used and not yet told
        self._known: set[int] = set()
        self._learning = threading.Lock()
        self._runner = Runner(self._note_usage)

    def begin(self) -> None:
        """Return as soon as the process is there."""

    def run(self, function: int, shipment: bytes, data: bytes) -> tuple[bytes, list[tuple[str, Mapping[str, Any]]]]:
        """Run an item, and return the packed answer with what the LMs of the function consumed meanwhile."""
        with self._learning:
            if function not in self._known:
                self._runner.learn(function, shipment)
                self._known.add(function)
        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._runner.run(function, data, False, answers.put)
        answer = answers.get()
        with self._lock:
            return answer, self._usage.pop(function, [])

    def leave(self, function: int) -> None:
        """Let no retry of a function wait any more."""
        self._runner.leave(function)

    def _note_usage(self, function: int, lm: str, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._usage.setdefault(function, []).append((lm, dict(entry)))


class _Crew(Workers):
    """The actors of one compile."""

    def __init__(self, ray: ModuleType, executor: RayExecutor) -> None:
        self.ray = ray
        self._executor = executor
        self._restarts_left = executor.max_restarts
        self._wanted = executor.num_workers
        self._has_ended = False
        self._pending: dict[Any, int] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # protects actors and restarts

    @contextmanager
    def open(self, function: Callable[[Item], Result], patience: Patience) -> Iterator[Shipped[Item, Result]]:
        """Put the function where all actors find it."""
        shipment = replace(Shipment.of(function, patience), journal=None)
        yield _Shipped(self, next(self._numbers), shipment)

    @contextmanager
    def choose(self) -> Iterator[Any]:
        """The actor with the least to do, which has one item more meanwhile; missing ones are started."""
        with self._lock:
            if self._has_ended:
                raise WorkerError("The workers were stopped.")
            if len(self._pending) < self._wanted:
                self._begin(self._wanted - len(self._pending))
            actor = min(self._pending, key=lambda actor: self._pending[actor])
            self._pending[actor] += 1
        try:
            yield actor
        finally:
            with self._lock:
                if actor in self._pending:
                    self._pending[actor] -= 1

    def _begin(self, number: int) -> None:
        """Start actors, and go on with fewer if the cluster has no place for all.

        Raises:
            WorkerError: It has no place for a single one.
        """
        options = {"max_concurrency": THREADS, **self._executor.resources}
        made = [self.ray.remote(_Actor).options(**options).remote() for _ in range(number)]
        signs = {actor.begin.remote(): actor for actor in made}
        there, missing = self.ray.wait(list(signs), num_returns=number, timeout=START_S)
        self._pending.update((signs[sign], 0) for sign in there)
        for sign in missing:
            self.ray.kill(signs[sign])
        if not self._pending:
            raise WorkerError(
                f"In {START_S:g} s the Ray cluster found no place for a worker that reserves "
                f"{dict(self._executor.resources)}. Lower `resources`, or add machines; `ray status` says what is free."
            )
        if missing:
            self._wanted = len(self._pending)
            logger.warning("The Ray cluster has no place for %d of the workers; the others go on.", len(missing))

    def lose(self, actor: Any, error: Exception) -> None:
        """Note that an actor is gone.

        Raises:
            WorkerError: Too many are.
        """
        with self._lock:
            if self._pending.pop(actor, None) is not None:
                self._restarts_left -= 1
                with suppress(Exception):
                    self.ray.kill(actor)  # one that is only out of reach must not go on beside the next
            if self._restarts_left < 0:
                raise WorkerError(
                    f"Workers of the Ray cluster were lost again and again, the last one with {error} All finished "
                    "runs are kept. Look at the cluster, or raise `max_restarts`, then run the same `compile` again "
                    "to resume."
                ) from error

    def leave(self, function: int) -> None:
        """Tell all actors to let no retry of a function wait."""
        with self._lock:
            for actor in self._pending:
                actor.leave.remote(function)

    def stop(self) -> None:
        """End all actors; items under way are lost."""
        with self._lock:
            self._has_ended = True
            for actor in self._pending:
                with suppress(Exception):
                    self.ray.kill(actor)
            self._pending.clear()


class _Shipped(Shipped[Item, Result]):
    def __init__(self, crew: _Crew, number: int, shipment: Shipment) -> None:
        self._crew = crew
        self._number = number
        self._shipment = shipment
        self._tracker = usage_tracker()
        self._place: Any = None
        self._lock = threading.Lock()  # it is packed once, when the first item comes

    def __call__(self, item: Item) -> Result:
        ray, data = self._crew.ray, pack(item)
        while True:
            with self._crew.choose() as actor:
                try:
                    answer, used = ray.get(actor.run.remote(self._number, self._put(), data))
                except ray.exceptions.RayActorError as error:
                    self._crew.lose(actor, error)
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise WorkerError(
                        f"A worker of the Ray cluster cannot load what it is to run: {error.cause or error} Its "
                        "packages and modules must be there, too; Ray's `runtime_env` brings them."
                    ) from error
            for lm, entry in used:
                if self._tracker is not None:
                    self._tracker.add_usage(lm, entry)
            result: Result = take_answer(answer)
            return result

    def leave(self) -> None:
        self._crew.leave(self._number)

    def _put(self) -> Any:
        with self._lock:
            if self._place is None:
                self._place = self._crew.ray.put(pack(self._shipment))
            return self._place
