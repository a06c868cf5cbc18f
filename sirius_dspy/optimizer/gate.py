"""The gate: which new weights are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError
from sirius_dspy.running.standing import Standing, floor_of


class Gain(NamedTuple):
    """How much better a program is than another one; compares like a number, the reward first."""

    reward: float
    """Difference of the mean rewards."""
    unbroken: int
    """How many fewer runs break."""


@dataclass
class Trial:
    """New weights to decide about, and a way to try them.

    Attributes:
        agents: The agents that have new weights, in their order.
        before: How good the program is without any of them.
        earlier: How good it was after each earlier iteration.
        score: Scores the program on the valset with the new weights of some agents; called once for each set of them.
    """

    agents: tuple[str, ...]
    before: Standing
    earlier: tuple[Standing, ...]
    score: Callable[[Collection[str]], Standing]
    _scores: dict[frozenset[str], Standing] = field(default_factory=dict)

    def evaluate(self, agents: Collection[str]) -> Standing:
        """Score the program with the new weights of these agents, and those from before of all others.

        Raises:
            SettingsError: One of them has no new weights.
        """
        chosen = frozenset(agents)
        if unknown := sorted(chosen - set(self.agents)):
            raise SettingsError(
                f"The gate names {unknown}, which have no new weights. Let it choose among `trial.agents`, here "
                f"{list(self.agents)}."
            )
        if not chosen:
            return self.before
        if chosen not in self._scores:
            self._scores[chosen] = self.score(chosen)
        return self._scores[chosen]

    @property
    def scores(self) -> tuple[tuple[tuple[str, ...], Standing], ...]:
        """What was evaluated, in that order: agents with their new weights, and how good the program was."""
        return tuple(
            (tuple(agent for agent in self.agents if agent in chosen), standing)
            for chosen, standing in self._scores.items()
        )

    def gain(self, new: Standing, old: Standing) -> Gain:
        """How much better a program is than another one."""
        floor = floor_of([new, old, *self.earlier])
        return Gain(new.mean(floor) - old.mean(floor), old.broken - new.broken)


class Gate(ABC):
    """Decides which new weights are kept after each iteration. Subclass it and define `choose`."""

    @abstractmethod
    def choose(self, trial: Trial) -> Collection[str]:
        """Choose the agents whose new weights are kept.

        Evaluations cost one run of the program for each example of the valset, and are kept on disk: a resumed compile
        gets the same scores again without running anything, so the choice must depend on nothing else.

        Args:
            trial: The agents, and a way to evaluate the program with some of the new weights.

        Returns:
            Names out of `trial.agents`.
        """

    def check(self) -> None:
        """Refuse settings of the wrong kind before anything is paid for; a gate without settings needs none.

        Raises:
            SettingsError: The message names the setting.
        """

    def max_evaluations(self, num_agents: int) -> int:
        """Return the most evaluations that `choose` makes, for a plan.

        Here it is one of all agents together and one more for each of them. Override it if `choose` makes more.

        Args:
            num_agents: Agents with new weights.
        """
        return 1 if num_agents == 1 else 1 + num_agents


@dataclass(frozen=True)
class ValsetGate(Gate):
    """Keeps new weights with which the program is not worse on the valset.

    All new weights are tried together. If the mean reward drops with them, agents are tried one by one.

    Attributes:
        min_gain: How much the mean reward must rise. The default keeps weights that make no difference; with the small
            valsets that one has, a larger value mostly keeps noise out.
    """

    min_gain: float = 0.0

    def choose(self, trial: Trial) -> Collection[str]:
        """See `Gate.choose`."""
        if self._is_enough(trial, trial.evaluate(trial.agents), trial.before):
            return trial.agents
        kept: tuple[str, ...] = ()
        for agent in trial.agents if len(trial.agents) > 1 else ():
            if self._is_enough(trial, trial.evaluate((*kept, agent)), trial.evaluate(kept)):
                kept = (*kept, agent)
        return kept

    def check(self) -> None:
        """See `Gate.check`."""
        checks.check("ValsetGate", vars(self), {"min_gain": checks.number(0)})

    def _is_enough(self, trial: Trial, new: Standing, old: Standing) -> bool:
        return trial.gain(new, old) >= Gain(self.min_gain, 0)
