"""`RayExecutor`: workers on the machines of a Ray cluster."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

from sirius_dspy import checks
from sirius_dspy.dspy_internals import usage_tracker
from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.answers import take_answer
from sirius_dspy.executors.connection import check_options, connected
from sirius_dspy.executors.crew import Crew, Member
from sirius_dspy.executors.losses import Attempt, run_item
from sirius_dspy.executors.packing import pack
from sirius_dspy.executors.runner import Runner
from sirius_dspy.executors.shipment import Shipment, ShippingExecutor
from sirius_dspy.running.executor import Item, Result, Shipped, Workers
from sirius_dspy.running.patience import Patience

OPTIONS = {"max_concurrency": 1024}
"""An actor takes so many calls at a time; how many there are is decided by the threads of the compile."""


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
            done by others. An item that kills its workers is put aside; see `ProcessExecutor`.
        start_s: Seconds that the first item waits for a worker, e.g. until the cluster has started a machine, before
            the compile stops. Other workers may join later; those that take longer than that are done without.
    """

    address: str | None = None
    num_workers: int = 2
    resources: Mapping[str, Any] = field(default_factory=lambda: {"num_cpus": 1})
    max_restarts: int = 8
    start_s: float = 600.0

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
            MissingDependencyError: Ray is not installed.
        """
        checks.check("RayExecutor", vars(self), _KINDS)
        check_options(_Actor, self.resources, "resources", OPTIONS)

    @contextmanager
    def start(self) -> Iterator[Workers]:
        """The context in which the actors live. They begin with the first item, and end with the context."""
        with connected(self.address) as ray:
            make = partial(self._make, ray)
            crew = Crew(make, self.num_workers, self.max_restarts, ray, self.resources, self.start_s)
            try:
                yield _Workers(crew)
            finally:
                crew.stop()

    def _make(self, ray: ModuleType) -> Any:
        """A new actor, which may have to wait for a place."""
        return ray.remote(_Actor).options(**OPTIONS, **self.resources).remote()


_KINDS = {
    "address": checks.optional(checks.TEXT),
    "num_workers": checks.whole(1),
    "resources": checks.table("options of a Ray actor, such as `{'num_cpus': 1}`", lambda value: True),
    "max_restarts": checks.whole(0),
    "start_s": checks.number(above=0),
}


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


class _Workers(Workers):
    """The actors of one compile."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._numbers = itertools.count()

    @contextmanager
    def open(self, function: Callable[[Item], Result], patience: Patience) -> Iterator[Shipped[Item, Result]]:
        """Put the function where all actors find it."""
        shipment = replace(Shipment.of(function, patience), journal=None)
        yield _Shipped(self._crew, next(self._numbers), shipment)


class _Shipped(Shipped[Item, Result]):
    def __init__(self, crew: Crew, number: int, shipment: Shipment) -> None:
        self._crew = crew
        self._number = number
        self._shipment = shipment
        self._tracker = usage_tracker()
        self._place: Any = None
        self._lock = threading.Lock()  # it is packed once, when the first item comes

    def __call__(self, item: Item) -> Result:
        data = pack(item)
        answer = run_item(lambda is_alone, is_again: self._attempt(data, is_alone), self._crew.losses)
        result: Result = take_answer(answer)
        return result

    def _attempt(self, data: bytes, is_alone: bool) -> Attempt:
        with self._crew.isolate() if is_alone else self._crew.choose() as (member, item):
            answer = self._ask(member, data)
        if answer is None:
            self._crew.check()
        return Attempt(member, item, answer)

    def _ask(self, member: Member, data: bytes) -> bytes | None:
        """Have an actor run an item; `None` if it is lost before its answer is here.

        Raises:
            WorkerError: It cannot load what it is to run.
        """
        ray, errors = self._crew.ray, self._crew.ray.exceptions
        losses = errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError, errors.NodeDiedError
        try:
            answer, used = ray.get(member.actor.run.remote(self._number, self._put(), data))
        except losses as error:  # Ray itself ends actors where memory runs out
            self._crew.lose(member, error)
            return None
        except errors.RayTaskError as error:
            raise WorkerError(
                f"A worker of the Ray cluster cannot load what it is to run: {error.cause or error} Its packages and "
                "modules must be there, too; Ray's `runtime_env` brings them."
            ) from error
        for lm, entry in used:
            if self._tracker is not None:
                self._tracker.add_usage(lm, entry)
        return bytes(answer)

    def leave(self) -> None:
        self._crew.leave(self._number)

    def _put(self) -> Any:
        with self._lock:
            if self._place is None:
                self._place = self._crew.ray.put(pack(self._shipment))
            return self._place
