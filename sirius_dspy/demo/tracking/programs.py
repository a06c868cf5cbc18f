"""The programs: a team that reads a story in parts, and a single agent that reads all of it."""

from __future__ import annotations

from collections.abc import Sequence

import dspy
from dspy.signatures import make_signature

from sirius_dspy.demo.tracking.world import World


class TrackingTeam(dspy.Module):
    """Reader -> Tracker for each part, then Reporter; only the reader sees the story, one part at a time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.reader = dspy.Predict(make_signature("part: str -> event: str", world.reading))
        self.tracker = dspy.Predict(make_signature("holder: str, event: str -> new_holder: str", world.tracking))
        self.reporter = dspy.Predict(make_signature("holder: str, question: str -> answer: str", world.answering))

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one story; the prediction has `answer`."""
        holder = start
        for part in parts:
            event = self.reader(part=part).event
            holder = self.tracker(holder=holder, event=event).new_holder
        return self.reporter(holder=holder, question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        holder = start
        for part in parts:
            event = (await self.reader.acall(part=part)).event
            holder = (await self.tracker.acall(holder=holder, event=event)).new_holder
        return await self.reporter.acall(holder=holder, question=question)


class SingleTracker(dspy.Module):
    """One agent, which reads the whole story and answers, with or without a reasoning field."""

    def __init__(self, world: World, reasoning: bool = False) -> None:
        super().__init__()
        outputs = "reasoning: str, answer: str" if reasoning else "answer: str"
        instructions = f"Say what happens and where it is after each event. {world.answering}"
        signature = f"story: str, question: str -> {outputs}"
        self.solver = dspy.Predict(make_signature(signature, instructions if reasoning else world.answering))
        self._world = world

    def forward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Answer the question about one story; the prediction has `answer`."""
        return self.solver(story=write_whole(self._world, start, parts), question=question)

    async def aforward(self, start: str, parts: Sequence[str], question: str) -> dspy.Prediction:
        """Like `forward`, without blocking the event loop."""
        return await self.solver.acall(story=write_whole(self._world, start, parts), question=question)


def write_whole(world: World, start: str, parts: Sequence[str]) -> str:
    """Write a story as one text, with the same information as its parts."""
    return " ".join([world.beginning.format(holder=start), *parts])
