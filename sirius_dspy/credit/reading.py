"""Reads the credits of a compile's steps from its library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from sirius_dspy.credit.values import Rerun, StepCredit, read_rerun, step_credits
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.trajectory import Trajectory

Succeeded = Callable[[Trajectory, str], bool]
"""Whether a run succeeded for one of its predictors."""


def read_credits(
    library: ExperienceLibrary,
    run: str,
    iteration: int,
    *,
    threshold: float,
    agents: Mapping[str, Sequence[str]],
    is_current: Callable[[Trajectory], bool] = lambda rerun: True,
) -> list[StepCredit]:
    """Compute the credits of all steps that an iteration valued, in the order of the runs' ids.

    Args:
        library: Where the runs and their reruns are.
        run: Id of the compile.
        iteration: Number of the iteration, from 1.
        threshold: A run succeeded if its reward is at least this.
        agents: Agent name to its predictors; agents may have rewards of their own.
        is_current: Whether a rerun counts.
    """
    succeeded = success_of(agents, threshold)
    found = {parent.id: (parent, reruns) for parent, reruns in _valued(library, run, iteration, succeeded, is_current)}
    return [credit for id in sorted(found) for credit in step_credits(*found[id], succeeded)]


def success_of(agents: Mapping[str, Sequence[str]], threshold: float) -> Succeeded:
    """Return the function that says whether a run succeeded for one of its predictors."""
    agent_of = {name: agent for agent, names in agents.items() for name in names}
    return lambda run, name: run.succeeded_for(agent_of.get(name, name), name, threshold=threshold)


def read_reruns(
    library: ExperienceLibrary, runs: Mapping[str, Trajectory], iteration: int, succeeded: Succeeded
) -> Iterator[tuple[Trajectory, Rerun]]:
    """Yield the stored reruns of some runs, each with what it says.

    Args:
        library: Where the reruns are.
        runs: The runs of one compile by id.
        iteration: The iteration of all of them.
        succeeded: Whether a run succeeded for one of its predictors.
    """
    for name in {run.run for run in runs.values()}:
        for rerun in library.trajectories(run=name, iteration=iteration, origin="credit"):
            parent = runs.get(rerun.parent or "")
            if parent is not None and (read := read_rerun(parent, rerun, succeeded)) is not None:
                yield rerun, read


def _valued(
    library: ExperienceLibrary,
    run: str,
    iteration: int,
    succeeded: Succeeded,
    is_current: Callable[[Trajectory], bool],
) -> Iterator[tuple[Trajectory, list[Rerun]]]:
    """The runs that have reruns, with them."""
    entries = library.entries(run=run, iteration=iteration, origin="credit")
    parents = {id: library.get(id) for id in {entry.parent for entry in entries} if id is not None}
    reruns: dict[str, list[Rerun]] = defaultdict(list)
    for trajectory, rerun in read_reruns(library, parents, iteration, succeeded):
        if is_current(trajectory):
            reruns[str(trajectory.parent)].append(rerun)
    yield from ((parents[id], found) for id, found in reruns.items())
