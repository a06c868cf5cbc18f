"""The contract suites hold for the parts that we ship, and fail for parts that break them."""

from __future__ import annotations

import pytest

from programs.negotiation.curator import GameCurator
from sirius_dspy import BalancedCurator, Curator, Gate, PassRateWeights, ValsetGate
from sirius_dspy.testing import CuratorContract, GateContract


class TestCurator(CuratorContract):
    @pytest.fixture(
        params=[
            Curator(),
            Curator(max_per_example=1, max_rows=2),
            Curator(max_per_run=1, max_per_agent=3, weights=PassRateWeights()),
            BalancedCurator(),
            GameCurator(),
        ],
        ids=repr,
    )
    def curator(self, request):
        return request.param


class TestValsetGate(GateContract):
    @pytest.fixture(params=[ValsetGate(), ValsetGate(min_gain=0.05)], ids=repr)
    def gate(self, request):
        return request.param


class Greedy(Gate):
    """Tries every pair of agents, more than it says."""

    def choose(self, trial):
        for one in trial.agents:
            for other in trial.agents:
                trial.evaluate({one, other})
        return trial.agents


def test_a_gate_that_evaluates_more_than_it_says_fails():
    with pytest.raises(AssertionError):
        GateContract().test_it_evaluates_no_more_often_than_planned(Greedy())


class Fickle(Curator):
    """Keeps whatever came first."""

    def curate(self, program, trajectories, agents, **settings):
        return super().curate(program, list(trajectories)[:5], agents, **settings)


def test_a_curator_that_goes_by_the_order_fails():
    with pytest.raises(AssertionError):
        CuratorContract().test_the_order_in_which_runs_finished_has_no_say(Fickle())


class Short(Curator):
    def refuse(self, row):
        return "too long" if len(row.messages[-1]["content"]) > 50 else ""


class TestShort(CuratorContract):
    @pytest.fixture
    def curator(self):
        return Short()
