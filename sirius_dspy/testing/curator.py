"""Contract tests for curators."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import dspy

from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing.engine import Prompt
from sirius_dspy.testing.scripted import ScriptedLM, chat_reply
from sirius_dspy.training.curate import Curator, TrainingSet
from sirius_dspy.trajectory import Trajectory

AGENTS: Mapping[str, Sequence[str]] = {"analyst": ("analyst",), "team": ("solver",)}
"""Agent name to its predictors; one agent has another name than its predictor."""


class CuratorContract:
    """Tests that every `Curator` must pass. Subclass it with a fixture `curator` that returns a new curator.

    The curator gets runs of a program of two agents, of which every other one succeeded. No test demands that a row is
    kept: which rows are good is the curator's own business, and a matter of its own tests.

    Examples:
        ```python
        class TestMyCurator(CuratorContract):
            @pytest.fixture
            def curator(self):
                return MyCurator()
        ```
    """

    def test_its_settings_are_right(self, curator: Curator) -> None:
        """`check` is called before the first LM call, and may only refuse wrong settings."""
        curator.check()

    def test_each_agent_gets_a_training_set_of_its_own(self, curator: Curator) -> None:
        """The keys of the result are the requested agents; frozen agents get nothing."""
        for agents in (AGENTS, {"team": ("solver",)}):
            sets = _curate(curator, _runs(), agents)
            assert set(sets) <= set(agents)
            for agent, rows in sets.items():
                assert isinstance(rows, TrainingSet)
                assert rows.agent == agent
                assert {row.predictor for row in rows.rows} <= set(agents[agent])

    def test_rows_are_chats_that_come_from_the_runs(self, curator: Curator) -> None:
        """Each row ends with the reply of an agent in one of the runs, so that it can be traced back to that run."""
        runs = {run.id: run for run in _runs()}
        for rows in _curate(curator, list(runs.values())).values():
            for row in rows.rows:
                assert row.messages[-1]["role"] == "assistant"
                assert row.example_key == runs[row.trajectory].example_key

    def test_failed_runs_teach_nothing(self, curator: Curator) -> None:
        """A run succeeds if it finished with a reward of at least the threshold."""
        runs = {run.id: run for run in _runs()}
        for rows in _curate(curator, list(runs.values())).values():
            assert all(runs[row.trajectory].succeeded(1.0) for row in rows.rows)

    def test_the_order_in_which_runs_finished_has_no_say(self, curator: Curator) -> None:
        """A resumed compile reads the same runs in another order, and must train on the same rows."""
        runs = _runs()
        assert _curate(curator, runs) == _curate(curator, runs[::-1])

    def test_the_runs_stay_as_they_were(self, curator: Curator) -> None:
        """The runs are in the library already."""
        runs = _runs()
        before = copy.deepcopy(runs)
        _curate(curator, runs)
        assert runs == before

    def test_no_runs_give_no_rows(self, curator: Curator) -> None:
        """An iteration may have no successful run."""
        assert all(not rows.rows for rows in _curate(curator, []).values())


class _Team(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        self.solver = dspy.Predict("facts -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.solver(facts=self.analyst(question=question).facts)


def _skill(prompt: Prompt) -> str:
    if prompt.asks_for("facts"):
        return chat_reply(facts=f"the facts about {prompt.field('question')}")
    return chat_reply(answer=str(prompt.field("facts")).split()[-1])


def _metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(int(prediction.answer) % 2 == 0)


def _program() -> dspy.Module:
    program = _Team()
    program.set_lm(ScriptedLM(_skill))
    return program


def _runs() -> list[Trajectory]:
    tasks = [Task(dspy.Example(question=str(number)).with_inputs("question")) for number in range(8)]
    rollouts = Rollouts(_metric, num_threads=1)
    with dspy.context(adapter=dspy.ChatAdapter()):
        return [trajectory for _, trajectory in rollouts.run_all(_program(), tasks)]


def _curate(
    curator: Curator, runs: Sequence[Trajectory], agents: Mapping[str, Sequence[str]] = AGENTS
) -> Mapping[str, TrainingSet]:
    with dspy.context(adapter=dspy.ChatAdapter()):
        return curator.curate(_program(), runs, agents, threshold=1.0, seed=3)
