"""Contract tests for gates."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sirius_dspy.optimizer.gate import Gate, Trial
from sirius_dspy.running.standing import Standing

TEAMS: Sequence[tuple[str, ...]] = (("solver",), ("analyst", "solver"), ("reader", "analyst", "solver"))
"""Agents with new weights."""


class GateContract:
    """Tests that every `Gate` must pass. Subclass it with a fixture `gate` that returns a new gate.

    No test demands that new weights are kept or refused: that is the gate's own business, and a matter of its tests.

    Examples:
        ```python
        class TestMyGate(GateContract):
            @pytest.fixture
            def gate(self):
                return MyGate()
        ```
    """

    def test_its_settings_are_right(self, gate: Gate) -> None:
        """`check` is called before the first LM call, and may only refuse wrong settings."""
        gate.check()

    def test_it_chooses_among_the_agents_with_new_weights(self, gate: Gate) -> None:
        """This holds if new weights help, hurt, make no difference, or break the program."""
        for trial in _trials():
            kept = gate.choose(trial)
            assert not isinstance(kept, str)
            assert set(kept) <= set(trial.agents)

    def test_equal_scores_give_an_equal_choice(self, gate: Gate) -> None:
        """A resumed compile calls the gate again, and relies on its earlier choice."""
        assert [set(gate.choose(trial)) for trial in _trials()] == [set(gate.choose(trial)) for trial in _trials()]

    def test_it_evaluates_no_more_often_than_planned(self, gate: Gate) -> None:
        """Each evaluation runs the program on the whole valset, and a plan relies on `max_evaluations`."""
        for trial in _trials():
            gate.choose(trial)
            assert len(trial.scores) <= gate.max_evaluations(len(trial.agents))


def _trials() -> list[Trial]:
    """Trials in which the new weights of each agent change the number of solved and broken runs by given amounts."""
    return [_trial(agents, solved, broken) for agents in TEAMS for solved in (-2, 0, 2) for broken in (-1, 0, 1)]


def _trial(agents: tuple[str, ...], solved: int, broken: int) -> Trial:
    before = _standing(10, 3)

    def score(chosen: Collection[str]) -> Standing:
        # The first agent's new weights do the opposite of the others', so that a gate may keep some of them.
        signs = [-1 if agent == agents[0] and len(agents) > 1 else 1 for agent in agents if agent in chosen]
        return _standing(10 + solved * sum(signs), 3 + broken * sum(signs))

    return Trial(agents, before, (before,), score)


def _standing(solved: int, broken: int) -> Standing:
    return Standing(ended=20 - broken, broken=broken, total=float(solved), lowest=0.0)
