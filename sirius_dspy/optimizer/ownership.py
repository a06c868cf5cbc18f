"""Which steps of stored runs an agent's own LM answered: a value, which repairs in other processes can ask, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sirius_dspy.trajectory import Step, Trajectory


@dataclass(frozen=True)
class Ownership:
    """What is known of the LMs of each agent."""

    agents: Mapping[str, Sequence[str]]
    """Agent name to its predictors."""
    start: Mapping[str, str]
    """Agent name to the id of the LM that it came with."""
    history: Sequence[Mapping[str, str]]
    """Agent name to LM id, after each iteration so far."""
    trained: frozenset[tuple[str, str]]
    """Agents with the ids of LMs that came out of their training."""
    has_teachers: bool
    """Whether teachers make the runs of the first iteration."""

    def answered(self, trajectory: Trajectory, step: Step) -> bool:
        """Whether its agent's LM of that time answered a step, or a teacher did in its place."""
        if trajectory.origin == "demonstration":
            return True
        if self.is_by_teacher(trajectory) and (trajectory.origin == "rollout" or step.source == "recorded"):
            return True
        agent = next((agent for agent, names in self.agents.items() if step.predictor in names), None)
        return agent is not None and step.lm in self._models_in(trajectory, agent)

    def is_by_teacher(self, trajectory: Trajectory) -> bool:
        """Whether teachers made the run, or the failed one that it repairs."""
        return self.has_teachers and trajectory.iteration == 1 and trajectory.origin != "validation"

    def _models_in(self, trajectory: Trajectory, agent: str) -> set[str]:
        """The weights with which the agent answered in this run; in a validation run, they may be new ones."""
        models = {self.history[trajectory.iteration - 1][agent]} if trajectory.iteration else set()
        if trajectory.origin != "validation":
            return models
        return models | {model for owner, model in self.trained if owner == agent} | {self.start[agent]}
