"""Which runs a report shows: failed ones beside their repairs, the most frequent failures, the usual data flow.

Runs are chosen by what is in them and by id, so that the same library gives the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

from sirius_dspy.errors import LibraryError
from sirius_dspy.graph.chart import FlowChart
from sirius_dspy.graph.flow import data_flow
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.library.rows import Entry
from sirius_dspy.plain import readable
from sirius_dspy.trajectory import Repair, Trajectory, canonical

NUM_STORIES = 10
"""Runs shown side by side."""

NUM_REPAIRED = 7
"""Of them repaired ones, where there are failures that nobody repaired to fill the rest."""

NUM_FLOWS = 3
"""Shapes of data flow shown, the most frequent ones."""

MOST_FLOWS = 300
"""Runs whose data flow is looked at: every text of a run is searched for in every later one."""


@dataclass(frozen=True, slots=True)
class Story:
    """A failed run, what was tried about it, and the run that came out."""

    failed: Trajectory
    inputs: Mapping[str, Any]
    """Of the example; empty, as its labels are, if the library does not have it."""
    labels: Mapping[str, Any]
    """What would have been right."""
    repair: Repair | None
    """`None` if nobody tried to repair it."""
    repaired: Trajectory | None
    """`None` if no attempt succeeded."""
    alike: int
    """Failed, unrepaired runs of this compile with the same outcome, itself included; 0 for a repaired one."""


@dataclass(frozen=True, slots=True)
class Flowed:
    """One way in which data flowed."""

    chart: FlowChart
    """Of one run that took this way; the tooltips hold what it wrote."""
    count: int
    """Runs that took it."""
    looked_at: int
    """Runs in which all ways were counted."""


def choose_stories(
    library: ExperienceLibrary, run: str, threshold: float, predictors: Sequence[str]
) -> tuple[Story, ...]:
    """The runs to show: repaired ones of all agents by turns, then the most frequent failures.

    Args:
        library: Where the runs are.
        run: Id of the compile.
        threshold: Least reward of a success.
        predictors: In the order in which their repairs take turns.
    """
    repairs: dict[str, Repair] = {}
    for repair in library.repairs(run=run):  # two critics may have repaired a run
        if repair.repaired or repair.parent not in repairs:
            repairs[repair.parent] = repair
    failures = list(islice(_failures(library, run, threshold, repairs), NUM_STORIES))
    repaired = list(_pick_repairs(library, repairs, predictors))
    num_repaired = max(NUM_REPAIRED, NUM_STORIES - len(failures))
    return tuple([*repaired[:num_repaired], *failures][:NUM_STORIES])


def _pick_repairs(
    library: ExperienceLibrary, repairs: Mapping[str, Repair], predictors: Sequence[str]
) -> Iterator[Story]:
    """At most `NUM_STORIES`, one predictor after the other."""
    by_predictor: dict[str, list[tuple[int, str, str]]] = {name: [] for name in predictors}
    for repair in repairs.values():
        for attempt in repair.attempts:
            if attempt.verdict == "repaired" and attempt.trajectory is not None:
                place = (repair.iteration, repair.parent, attempt.trajectory)
                by_predictor.setdefault(attempt.predictor, []).append(place)
    turns = chain.from_iterable(zip_longest(*(sorted(place) for place in by_predictor.values())))
    for _, parent, good in islice(filter(None, turns), NUM_STORIES):
        failed = library.get(parent)
        yield Story(failed, *_example(library, failed), repairs[parent], library.get(good), 0)


def _failures(library: ExperienceLibrary, run: str, threshold: float, repairs: Mapping[str, Repair]) -> Iterator[Story]:
    """The failed rollouts that nobody repaired: one of each outcome, the most frequent outcome first."""
    counts: Counter[str] = Counter()
    chosen: dict[str, tuple[bool, str]] = {}
    for entry in library.entries(run=run, origin="rollout", below=threshold):
        repair = repairs.get(entry.id)
        if repair is not None and repair.repaired:
            continue
        outcome = _outcome(entry)
        counts[outcome] += 1
        candidate = (repair is None, entry.id)  # one with feedback teaches more
        chosen[outcome] = min(candidate, chosen.get(outcome, candidate))
    for outcome in sorted(counts, key=lambda name: (-counts[name], name)):
        failed = library.get(chosen[outcome][1])
        yield Story(failed, *_example(library, failed), repairs.get(failed.id), None, counts[outcome])


def _outcome(entry: Entry) -> str:
    return f"raised {entry.failure.kind}" if entry.failure is not None else canonical(readable(entry.prediction))


def _example(library: ExperienceLibrary, trajectory: Trajectory) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Inputs and labels of the example that a run was made from."""
    try:
        inputs, labels = library.plain_example(trajectory.example_key)
    except LibraryError:  # an imported run may come without it
        return {}, {}
    return readable(inputs), readable(labels)


def most_frequent_flows(library: ExperienceLibrary, run: str) -> tuple[Flowed, ...]:
    """The shapes of data flow that most rollouts had, of the first `MOST_FLOWS` that ended without an error."""
    charts: dict[str, FlowChart] = {}
    counts: Counter[str] = Counter()
    runs = library.trajectories(run=run, origin="rollout")
    for trajectory in islice((one for one in runs if one.failure is None), MOST_FLOWS):
        chart = data_flow(trajectory)
        shape = repr(([node.label for node in chart.nodes], chart.flows))
        counts[shape] += 1
        charts.setdefault(shape, chart)
    shapes = sorted(counts, key=lambda shape: (-counts[shape], shape))[:NUM_FLOWS]
    return tuple(Flowed(charts[shape], counts[shape], counts.total()) for shape in shapes)
