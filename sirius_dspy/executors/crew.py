"""The actors of one compile: who gets the next item, who is missing, who is lost."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from sirius_dspy.errors import WorkerError
from sirius_dspy.executors.losses import Losses

logger = logging.getLogger(__name__)

GATHER_S = 10.0
"""How long the first actor waits for the others, so that it does not get all the first items alone."""

QUIET_S = 30.0
"""How long nothing is said while no actor has begun."""

_ADVICE = "Look at the cluster, or raise `max_restarts`"


class Member:
    """An actor."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.pending: set[int] = set()
        """Numbers of the items under way."""
        self.lost_items: frozenset[int] = frozenset()
        self.is_lost = False


class Crew:
    """The actors of one compile. Thread-safe.

    Args:
        make: Makes an actor, which need not have a place yet.
        wanted: How many there are to be.
        max_restarts: How many may die for no known reason.
        ray: The package.
        resources: What each one reserves, for messages.
        start_s: How long one may take to begin, its machine included, before the work is done by fewer.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        wanted: int,
        max_restarts: int,
        ray: ModuleType,
        resources: Mapping[str, Any],
        start_s: float,
    ) -> None:
        self.ray = ray
        self.losses = Losses(max_restarts, "Workers of the Ray cluster", _ADVICE)
        self._make = make
        self._wanted = wanted
        self._resources = dict(resources)
        self._start_s = start_s
        self._members: list[Member] = []
        self._alone: Member | None = None
        self._coming: dict[Any, tuple[Any, float]] = {}
        """The sign that an actor has begun, to the actor and the time until which it may come."""
        self._numbers = itertools.count()
        self._has_ended = False
        self._has_no_place = False
        self._change = threading.Condition()  # protects all of it
        self._being_alone = threading.Lock()  # one at a time, since workers may die for lack of memory

    @contextmanager
    def choose(self) -> Iterator[tuple[Member, int]]:
        """The actor with the least to do, which has one item more meanwhile, and the number of the item.

        Raises:
            WorkerError: Too many have died, the crew was stopped, or the cluster has no place for a single one.
        """
        with self._change:
            member = self._pick()
            number = self._give(member)
        try:
            yield member, number
        finally:
            self._take_back(member, number)

    @contextmanager
    def isolate(self) -> Iterator[tuple[Member, int]]:
        """An actor that has one item and gets no other meanwhile, and the number of the item.

        It is one of those that are there, after it has done what it had begun: the cluster may have no place for more.

        Raises:
            WorkerError: See `choose`.
        """
        with self._being_alone:
            with self._change:
                member = self._alone = self._pick()
                self._members.remove(member)
                self._change.wait_for(lambda: not member.pending)
                number = self._give(member)
            try:
                yield member, number
            finally:
                self._take_back(member, number)
                with self._change:
                    self._alone = None
                    if not member.is_lost:
                        self._members.append(member)

    def _pick(self) -> Member:
        """The actor with the least to do, after all have been admitted that have begun."""
        self._staff()
        while not self._members:  # the only one is alone with an item
            self._change.wait(1.0)
            self._staff()
        return min(self._members, key=lambda member: len(member.pending))

    def _give(self, member: Member) -> int:
        number = next(self._numbers)
        member.pending.add(number)
        return number

    def _take_back(self, member: Member, number: int) -> None:
        with self._change:
            member.pending.discard(number)
            self._change.notify_all()

    def check(self) -> None:
        """Raise an error if no item can be done any more.

        Raises:
            WorkerError: Too many have died, or the crew was stopped.
        """
        with self._change:
            self._check()

    def _check(self) -> None:
        if self._has_ended:
            raise WorkerError("The workers were stopped.")
        if self._has_no_place:
            raise WorkerError(
                f"In {self._start_s:g} s the Ray cluster found no place for a worker that reserves {self._resources}. "
                "Lower `resources`, add machines, or raise `start_s`; `ray status` says what is free."
            )
        self.losses.check()

    def _staff(self) -> None:
        """Let missing actors begin, and admit those that have. Nothing waits for them unless nobody else is there.

        Raises:
            WorkerError: See `choose`.
        """
        self._check()
        for _ in range(self._wanted - len(self._members) - len(self._coming) - (self._alone is not None)):
            actor = self._make()
            self._coming[actor.begin.remote()] = actor, time.monotonic() + self._start_s
        if not self._coming:
            return
        signs, is_empty = list(self._coming), not self._members and self._alone is None
        begun = self._await_first(signs) if is_empty else self._look(signs)
        if begun:
            begun = self._look(signs, GATHER_S if is_empty else 0.0, len(signs))
        for sign in begun:
            self._admit(Member(self._coming.pop(sign)[0]), sign)
        self._give_up_late_ones()
        self._check()
        if is_empty and not begun:
            self._has_no_place = True
            self._check()

    def _await_first(self, signs: list[Any]) -> list[Any]:
        """Wait until an actor has begun; `[]` if none does."""
        begun = self._look(signs, min(QUIET_S, self._start_s))
        if not begun and self._start_s > QUIET_S:
            logger.warning(
                "No worker of the Ray cluster has begun in %g s. Each reserves %s; `ray status` says what is free.",
                QUIET_S,
                self._resources,
            )
            begun = self._look(signs, self._start_s - QUIET_S)
        return begun

    def _look(self, signs: list[Any], timeout_s: float = 0.0, number: int = 1) -> list[Any]:
        """Return the signs that are there, at the latest when there are so many or the time is over."""
        begun: list[Any] = self.ray.wait(signs, num_returns=number, timeout=timeout_s, fetch_local=False)[0]
        return begun

    def _admit(self, member: Member, sign: Any) -> None:
        """Let an actor work that has begun, unless it was lost before, e.g. because its machine was."""
        try:
            self.ray.get(sign)
        except self.ray.exceptions.RayError as error:
            logger.warning("A worker of the Ray cluster did not begin: %s", error)
            self.losses.note(member)
        else:
            self._members.append(member)

    def _give_up_late_ones(self) -> None:
        late = [sign for sign, (_, until) in self._coming.items() if time.monotonic() >= until]
        for sign in late:
            self.ray.kill(self._coming.pop(sign)[0])
        if late and (self._members or self._alone is not None):
            self._wanted -= len(late)
            logger.warning("The Ray cluster has no place for %d of the workers; the others go on.", len(late))

    def lose(self, member: Member, error: Exception) -> None:
        """Note that an actor is gone, or out of reach."""
        with self._change:
            if member.is_lost:
                return
            logger.warning("A worker of the Ray cluster was lost: %s", error)
            member.is_lost = True
            member.lost_items = frozenset(member.pending)
            if member in self._members:
                self._members.remove(member)
            self.losses.note(member)
            with suppress(Exception):
                self.ray.kill(member.actor)  # one that is only out of reach must not go on beside the next
            self._change.notify_all()

    def leave(self, function: int) -> None:
        """Tell all actors to let no retry of a function wait."""
        with self._change:
            for member in self._all:
                member.actor.leave.remote(function)

    @property
    def _all(self) -> list[Member]:
        return [*self._members, *([] if self._alone is None else [self._alone])]

    def stop(self) -> None:
        """End all actors; items under way are lost."""
        with self._change:
            self._has_ended = True
            for actor in [*(member.actor for member in self._all), *(actor for actor, _ in self._coming.values())]:
                with suppress(Exception):
                    self.ray.kill(actor)
            self._members.clear()
            self._coming.clear()
            self._change.notify_all()
