"""Which weights each agent of a compile has: put into the working copy of the program, trained, and found again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import dspy

from sirius_dspy.dspy_internals import mark_compiled
from sirius_dspy.lms import Launches, OutsideLMCallback, follow_context, follow_no_context, keep_settings
from sirius_dspy.optimizer.ownership import Ownership
from sirius_dspy.program import copy_program, predictor_names
from sirius_dspy.trajectory import Step, Trajectory

LMs = dict[str, dspy.LM]
"""Agent name to LM."""

History = Sequence[Mapping[str, str]]
"""Agent name to LM id, after each iteration so far."""


class Weights:
    """The LMs of the agents, and the program that they are put into.

    Args:
        student: Copied; a copy is what runs.
        agents: Agent name to the predictors that share its weights.
        start: Agent name to the LM that it came with.
        has_teachers: Whether teachers make the runs of the first iteration.
        restore: Gives back the LM of a job that finished before a restart, by agent and id.
    """

    def __init__(
        self,
        student: dspy.Module,
        agents: Mapping[str, Sequence[str]],
        start: Mapping[str, dspy.LM],
        *,
        has_teachers: bool,
        restore: Callable[[str, str], dspy.LM],
    ) -> None:
        self._student = student
        self._program = copy_program(student)
        self._is_used = False
        self.agents = agents
        self.start: LMs = dict(start)
        self.current: LMs = dict(start)
        self.history: list[Mapping[str, str]] = []
        self.launches = Launches()
        predictors = predictor_names(self._program)
        self._demos = {name: predictor.demos for name, predictor in predictors.items()}
        self._given = {name: predictor.lm for name, predictor in predictors.items()}
        self._has_teachers = has_teachers
        self._restore = restore
        self._trained: dict[tuple[str, str], dspy.LM] = {}
        self._chosen: dict[str, set[str]] = defaultdict(set)

    @property
    def program(self) -> dspy.Module:
        """The working copy."""
        self._is_used = True
        return self._program

    @property
    def predictors(self) -> frozenset[str]:
        """Names of all predictors."""
        return frozenset(self._demos)

    @property
    def ownership(self) -> Ownership:
        """Which steps of the runs so far an agent's own LM answered."""
        start = {agent: lm.model for agent, lm in self.start.items()}
        return Ownership(self.agents, start, tuple(self.history), frozenset(self._trained), self._has_teachers)

    @property
    def untaught(self) -> frozenset[str]:
        """Predictors of agents that still have the weights they came with."""
        return frozenset(
            name
            for agent, names in self.agents.items()
            for name in names
            if self.current[agent].model == self.start[agent].model
        )

    @property
    def chosen_in_forward(self) -> dict[str, tuple[str, ...]]:
        """Predictor name to the LMs that `forward` chose in place of its own."""
        return {name: tuple(sorted(models)) for name, models in sorted(self._chosen.items()) if models}

    def install(self, lms: Mapping[str, dspy.LM]) -> None:
        """Put LMs into the working copy. New weights were trained without demonstrations, so they get none.

        If it may have run, the copy is a new one: programs keep answers of the LMs before, and what they heard in other
        runs. Large ones take seconds to copy.
        Predictors that share weights keep the settings of their own LMs. One without an LM stays without until it is
        trained, so that `forward` can choose another one by `dspy.context`, and can do so afterwards as well.
        """
        if self._is_used:
            self._program, self._is_used = copy_program(self._student), False
        predictors = predictor_names(self._program)
        for agent, names in self.agents.items():
            base = self.start[agent]
            is_taught = lms[agent].model != base.model
            lm = self.launches.launch(agent, lms[agent]) if is_taught else base
            for name in names:
                predictor, given = predictors[name], self._given[name]
                predictor.lm = keep_settings(lm, base, given or dspy.settings.lm) if is_taught else given
                predictor.demos = [] if is_taught else self._demos[name]
                (follow_context if is_taught and given is None else follow_no_context)(predictor)

    def add(self, agent: str, lm: dspy.LM) -> None:
        """Remember an LM that came out of training."""
        self._trained[agent, lm.model] = lm

    def find(self, agent: str, model: str) -> dspy.LM:
        """The LM with this id: the agent's first one, or one that came out of training, before a restart perhaps."""
        if self.start[agent].model == model:
            return self.start[agent]
        if (agent, model) not in self._trained:
            self._trained[agent, model] = self._restore(agent, model)
        return self._trained[agent, model]

    def find_all(self, models: Mapping[str, str]) -> LMs:
        """Agent name to the LM with this id."""
        return {agent: self.find(agent, model) for agent, model in models.items()}

    def could_have_made(self, trajectory: Trajectory, lms: Mapping[str, dspy.LM]) -> bool:
        """Whether these LMs made a stored run: a shared library may hold another run of this compile.

        Until something was trained, there is no other, since the LMs at the start are part of a compile's identity.
        """
        is_of_student = trajectory.iteration == 0 and trajectory.sample == 0
        if is_of_student or (trajectory.iteration == 1 and trajectory.origin == "rollout" and not self._is_warm):
            return True
        models = {name: lms[agent].model for agent, names in self.agents.items() for name in names}
        return all(
            step.lm == models.get(step.predictor, step.lm) or step.lm in self._chosen[step.predictor]
            for step in trajectory.steps
        )

    def could_have_rerun(self, rerun: Trajectory) -> bool:
        """Whether the LMs of that time answered what was not held in a rerun; see `could_have_made`."""
        return all(
            step.source != "live"
            or step.predictor not in self._given
            or self.answered(rerun, step)
            or step.lm in self._chosen[step.predictor]
            for step in rerun.steps
        )

    def answered(self, trajectory: Trajectory, step: Step) -> bool:
        """Whether its agent's LM of that time answered a step, or a teacher did in its place."""
        return self.ownership.answered(trajectory, step)

    def note_chosen(self, trajectory: Trajectory) -> None:
        """Note which LMs `forward` chose for a predictor in place of its own."""
        ownership = self.ownership
        if ownership.is_by_teacher(trajectory):
            return
        for step in trajectory.steps:
            if step.predictor in self._given and not ownership.answered(trajectory, step):
                self._chosen[step.predictor].add(step.lm)

    def remember_chosen(self, chosen: Mapping[str, Iterable[str]]) -> None:
        """Take over what an earlier iteration noted."""
        for name, models in chosen.items():
            self._chosen[name].update(models)

    @property
    def _is_warm(self) -> bool:
        """Whether a warm start has given an agent new weights."""
        return any(self.start[agent].model != model for agent, model in self.history[0].items())

    def compiled(self) -> dspy.Module:
        """A copy of the program as it is now, for the user."""
        program = copy_program(self._program)
        for name, predictor in predictor_names(program).items():
            if not self._chosen[name]:
                follow_no_context(predictor)
        if any(self._given[name] is None and models for name, models in self._chosen.items()):
            program.callbacks.append(OutsideLMCallback())
        mark_compiled(program)
        return program
