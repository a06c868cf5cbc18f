"""What the experience library says about one compile, counted row by row: no more than a page of it is in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.stats import LibraryStats
from sirius_dspy.optimizer.results import CompileResult
from sirius_dspy.report.stories import Flowed, Story, choose_stories, most_frequent_flows
from sirius_dspy.trajectory import Attempt, Repair

ALL_AGENTS = "all"
"""In `Funnel.agent`: whichever agent was edited."""

FUNNEL = ("failed", "critiqued", "regenerated", "replayed", "repaired")
"""Each stage is a part of the one before; `leaked` ones drop out between `regenerated` and `replayed`."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """How far the failed runs of one iteration came in repair; an agent's counts are those that it was tried in."""

    iteration: int
    agent: str
    counts: Mapping[str, int]
    """Number of failed runs by stage: those of `FUNNEL`, and `leaked`."""


@dataclass(frozen=True)
class Experience:
    """One compile's part of a library."""

    growth: tuple[LibraryStats, ...]
    funnels: tuple[Funnel, ...]
    flows: tuple[Flowed, ...]
    stories: tuple[Story, ...]


def read_experience(library: ExperienceLibrary, results: CompileResult) -> Experience:
    """Count and choose what a report shows.

    Args:
        library: Where the compile's runs are.
        results: Of the compile: its id, threshold and agents count.
    """
    run, threshold = results.run, results.threshold
    agent_of = {name: agent for agent, names in results.agents.items() for name in names}
    return Experience(
        growth=tuple(stats for stats in library.stats(threshold=threshold) if stats.run == run),
        funnels=tuple(_funnels(library.repairs(run=run), agent_of)),
        flows=most_frequent_flows(library, run),
        stories=choose_stories(library, run, threshold, list(agent_of)),
    )


def _funnels(repairs: Iterable[Repair], agent_of: Mapping[str, str]) -> list[Funnel]:
    """By iteration: all agents together, then each by itself."""
    counts: dict[tuple[int, str], dict[str, int]] = {}
    tried: dict[tuple[int, str], list[Attempt]] = defaultdict(list)
    for repair in repairs:  # two critics may have repaired a run
        tried[repair.iteration, repair.parent] += repair.attempts
    for (iteration, _), made in tried.items():
        by_agent: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in made:
            by_agent[agent_of.get(attempt.predictor, attempt.predictor)].append(attempt)
        for agent, attempts in [(ALL_AGENTS, made), *by_agent.items()]:
            by_stage = counts.setdefault((iteration, agent), dict.fromkeys((*FUNNEL, "leaked"), 0))
            for stage in _list_stages(attempts):
                by_stage[stage] += 1
    order = {agent: number for number, agent in enumerate([ALL_AGENTS, *dict.fromkeys(agent_of.values())])}
    places = sorted(counts, key=lambda place: (place[0], order.get(place[1], len(order)), place[1]))
    return [Funnel(iteration, agent, counts[iteration, agent]) for iteration, agent in places]


def _list_stages(attempts: Sequence[Attempt]) -> Iterator[str]:
    """How far one failed run came."""
    yield "failed"
    if any(attempt.feedback for attempt in attempts):
        yield "critiqued"
    if any(attempt.regenerated is not None for attempt in attempts):
        yield "regenerated"
    if any(attempt.trajectory is not None for attempt in attempts):
        yield "replayed"
    if any(attempt.verdict == "repaired" for attempt in attempts):
        yield "repaired"
    if any(attempt.verdict == "leaked" for attempt in attempts):
        yield "leaked"
