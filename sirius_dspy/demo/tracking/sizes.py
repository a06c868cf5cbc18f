"""Teams of other sizes for the same stories.

2 agents merge the reader and the tracker; 4 and 5 agents divide what the tracker does:

    2    tracker, reporter
    3    reader, tracker, reporter
    4    reader, namer, tracker, reporter
    5    reader, namer, checker, tracker, reporter

The namer names the two holders of an event, and the checker says whether the thing moves. Every agent except the
reporter has a step in each part of a story.
"""

from __future__ import annotations

from collections.abc import Sequence

import dspy
from dspy.signatures import make_signature

from sirius_dspy.demo.tracking.programs import TrackingTeam
from sirius_dspy.demo.tracking.world import World
from sirius_dspy.errors import DatasetError

SIZE = 3
"""The number of agents that the demo and most recipes have."""


class TeamOfTwo(dspy.Module):
    """Tracker for each part, then Reporter; the tracker reads the part itself."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.tracker = dspy.Predict(make_signature("holder: str, part: str -> new_holder: str", world.tracking))
        self.reporter = dspy.Predict(make_signature("holder: str, question: str -> answer: str", world.answering))

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one story; the prediction has `answer`."""
        holder = start
        for part in parts:
            holder = self.tracker(holder=holder, part=part).new_holder
        return self.reporter(holder=holder, question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        holder = start
        for part in parts:
            holder = (await self.tracker.acall(holder=holder, part=part)).new_holder
        return await self.reporter.acall(holder=holder, question=question)


class TeamOfFour(dspy.Module):
    """Reader -> Namer -> Tracker for each part, then Reporter; the tracker sees only the names."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.reader = dspy.Predict(make_signature("part: str -> event: str", world.reading))
        self.namer = dspy.Predict(make_signature("event: str -> names: str", world.naming))
        self.tracker = dspy.Predict(make_signature("holder: str, names: str -> new_holder: str", world.tracking))
        self.reporter = dspy.Predict(make_signature("holder: str, question: str -> answer: str", world.answering))

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one story; the prediction has `answer`."""
        holder = start
        for part in parts:
            names = self.namer(event=self.reader(part=part).event).names
            holder = self.tracker(holder=holder, names=names).new_holder
        return self.reporter(holder=holder, question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        holder = start
        for part in parts:
            event = (await self.reader.acall(part=part)).event
            names = (await self.namer.acall(event=event)).names
            holder = (await self.tracker.acall(holder=holder, names=names)).new_holder
        return await self.reporter.acall(holder=holder, question=question)


class TeamOfFive(dspy.Module):
    """Reader -> Namer -> Checker -> Tracker for each part, then Reporter; the checker says whether the thing moves."""

    def __init__(self, world: World) -> None:
        super().__init__()
        tracking = "holder: str, names: str, moves: str -> new_holder: str"
        self.reader = dspy.Predict(make_signature("part: str -> event: str", world.reading))
        self.namer = dspy.Predict(make_signature("event: str -> names: str", world.naming))
        self.checker = dspy.Predict(make_signature("holder: str, names: str -> moves: str", world.checking))
        self.tracker = dspy.Predict(make_signature(tracking, world.tracking))
        self.reporter = dspy.Predict(make_signature("holder: str, question: str -> answer: str", world.answering))

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one story; the prediction has `answer`."""
        holder = start
        for part in parts:
            names = self.namer(event=self.reader(part=part).event).names
            moves = self.checker(holder=holder, names=names).moves
            holder = self.tracker(holder=holder, names=names, moves=moves).new_holder
        return self.reporter(holder=holder, question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        holder = start
        for part in parts:
            event = (await self.reader.acall(part=part)).event
            names = (await self.namer.acall(event=event)).names
            moves = (await self.checker.acall(holder=holder, names=names)).moves
            holder = (await self.tracker.acall(holder=holder, names=names, moves=moves)).new_holder
        return await self.reporter.acall(holder=holder, question=question)


_TEAMS = {2: TeamOfTwo, SIZE: TrackingTeam, 4: TeamOfFour, 5: TeamOfFive}


def build_team(world: World, agents: int) -> dspy.Module:
    """Build the team with this number of agents."""
    return _TEAMS[agents](world)


def check_size(agents: int) -> None:
    """Refuse a number of agents that no team has.

    Raises:
        DatasetError: There is no such team.
    """
    if agents not in _TEAMS:
        raise DatasetError(f"`agents` is {agents!r}, expected one of {list(_TEAMS)}. Set `single` for one agent.")
