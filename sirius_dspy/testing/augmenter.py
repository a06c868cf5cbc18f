"""Contract tests for augmenters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dspy

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.testing.engine import Prompt
from sirius_dspy.testing.scripted import ScriptedLM, chat_reply
from sirius_dspy.trajectory import Origin, Trajectory

REPAIRS: tuple[Origin, ...] = ("repair", "confirmation")

EVERYBODY = frozenset({"analyst", "solver"})


class AugmenterContract:
    """Tests that every `Augmenter` must pass. Subclass it with a fixture `augmenter` that returns a new augmenter.

    The augmenter gets failed runs of a program with two agents. Their LM gives a wrong answer to the prompts of the
    failed run and a right answer to any other prompt. No test requires that a repair succeeds; test that separately.

    Examples:
        ```python
        class TestMyAugmenter(AugmenterContract):
            @pytest.fixture
            def augmenter(self):
                return MyAugmenter()
        ```
    """

    def test_every_run_continues_the_failed_one(self, augmenter: Augmenter) -> None:
        """A run without a link to its failure, or without an edit, must not become a training row."""
        for unparsed in ("", "facts", "answer"):
            with _fail_run(1, unparsed) as case:
                _check_lineage(case, _repair(augmenter, case, EVERYBODY), EVERYBODY)

    def test_a_repaired_attempt_names_a_run_that_succeeded(self, augmenter: Augmenter) -> None:
        """The metric decides whether a run succeeded, not the augmenter."""
        with _fail_run(1) as case:
            repair, trajectories = _repair(augmenter, case, EVERYBODY)
            rewards = {trajectory.id: trajectory.reward for trajectory in trajectories}
            for attempt in repair.attempts:
                assert attempt.trajectory is None or attempt.trajectory in rewards
                if attempt.verdict == "repaired":
                    assert rewards[attempt.trajectory or ""] >= case.threshold

    def test_what_it_returns_can_be_stored(self, augmenter: Augmenter, tmp_path: Path) -> None:
        """The library stores a repair with all its runs, or not at all."""
        with _fail_run(1) as case, ExperienceLibrary(tmp_path / "library.db") as library:
            repair, trajectories = _repair(augmenter, case, EVERYBODY)
            library.add(case.failed)
            library.add_repair(repair, trajectories)
            assert [stored.parent for stored in library.repairs()] == [case.failed.id]
            assert library.count(origin=REPAIRS) == len({trajectory.id for trajectory in trajectories})

    def test_agents_that_are_not_editable_keep_what_they_wrote(self, augmenter: Augmenter) -> None:
        """A frozen agent, such as a judge, is not trained."""
        for editable in (frozenset({"solver"}), frozenset({"analyst"}), frozenset[str]()):
            with _fail_run(1) as case:
                _check_lineage(case, _repair(augmenter, case, editable), editable)

    def test_a_run_that_did_not_parse_raises_nothing(self, augmenter: Augmenter) -> None:
        """A failed run is data, even if it ended early; an agent that wrote nothing is not edited."""
        for unparsed in ("facts", "answer"):
            with _fail_run(1, unparsed) as case:
                assert case.failed.failure is not None
                repair, _ = _repair(augmenter, case, EVERYBODY)
                assert all(attempt.position < len(case.failed.steps) for attempt in repair.attempts)

    def test_another_critic_leaves_the_augmenter_as_it_was(self, augmenter: Augmenter) -> None:
        """A compile goes on with the old critic if the new one is not better."""
        before = augmenter.learning_critic()
        lm = ScriptedLM(lambda prompt: chat_reply(feedback="Look again."))
        learned = augmenter.with_critic(lm).learning_critic()
        assert augmenter.learning_critic() == before
        assert (learned is None) == (before is None)
        assert learned is None or learned.lm is lm

    def test_the_program_stays_as_it_was(self, augmenter: Augmenter) -> None:
        """All repairs of an iteration share the program."""
        with _fail_run(1) as case:
            before = case.program.dump_state()
            _repair(augmenter, case, EVERYBODY)
            assert case.program.dump_state() == before

    def test_repairs_in_several_threads_do_not_mix(self, augmenter: Augmenter) -> None:
        """`repair` is called from several threads at a time."""

        def repair_one(number: int) -> None:
            with _fail_run(number) as case:
                result = _repair(augmenter, case, EVERYBODY)
                _check_lineage(case, result, EVERYBODY)
                assert all(_question(number) == step.inputs["question"] for run in result[1] for step in run.steps)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(repair_one, range(16)))


class _Team(dspy.Module):
    """Two agents, both of whom read the question."""

    def __init__(self) -> None:
        super().__init__()
        self.analyst = dspy.Predict("question -> facts")
        self.solver = dspy.Predict("question, facts -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        facts = self.analyst(question=question).facts
        return self.solver(question=question, facts=facts)


class _World:
    """Answers the program's own prompts wrongly, also when they are repeated, and all other prompts correctly."""

    def __init__(self, right: str, unparsed: str) -> None:
        self.right = right
        self.unparsed = unparsed
        self.at_first = True
        self._asked: set[tuple[str, int | None]] = set()

    def __call__(self, prompt: Prompt) -> str:
        call = prompt.text, prompt.seed
        if self.at_first:
            self._asked.add(call)
        if call not in self._asked:
            return _reply(prompt, {"facts": "Look it up.", "answer": self.right})
        if self.unparsed and prompt.asks_for(self.unparsed):
            return "well, well"
        return _reply(prompt, {"facts": "no idea", "answer": "wrong"})


def _reply(prompt: Prompt, values: Mapping[str, str]) -> str:
    """Write a value for each output field that ChatAdapter lists at the end of a prompt."""
    names = re.findall(r"`\[\[ ## (\w+) ## \]\]`", prompt.user)
    return chat_reply(**{name: values.get(name, "Look it up.") for name in names if name != "completed"})


@dataclass(frozen=True)
class _Case:
    """A failed run, and everything that a repair needs."""

    program: dspy.Module
    example: dspy.Example
    rollouts: Rollouts
    failed: Trajectory
    threshold: float = 1.0


def _question(number: int) -> str:
    return f"What is written on door {number}?"


def _right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.answer == example.answer)


@contextmanager
def _fail_run(number: int, unparsed: str = "") -> Iterator[_Case]:
    """Yield a failed run, in the context in which it can be repaired.

    Args:
        number: Number of the run; each has another question.
        unparsed: Output field of the agent whose reply does not parse; empty if all replies parse.
    """
    example = dspy.Example(question=_question(number), answer=f"sign {number}").with_inputs("question")
    world = _World(example.answer, unparsed)
    program = _Team()
    program.set_lm(ScriptedLM(world))
    rollouts = Rollouts(_right, run="contract", iteration=1, num_threads=1)
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), lm=None):
        failed = rollouts.run_one(program, Task(example))
        world.at_first = False
        yield _Case(program, example, rollouts, failed)


def _repair(augmenter: Augmenter, case: _Case, editable: frozenset[str]) -> RepairOutcome:
    context = RepairContext(case.program, case.rollouts, case.threshold, editable)
    return augmenter.repair(case.failed, case.example, context)


def _check_lineage(case: _Case, repaired: RepairOutcome, editable: frozenset[str]) -> None:
    repair, trajectories = repaired
    assert (repair.parent, repair.run, repair.iteration) == (case.failed.id, "contract", 1)
    for attempt in repair.attempts:
        assert attempt.predictor == case.failed.steps[attempt.position].predictor
        assert attempt.predictor in editable
    for trajectory in trajectories:
        assert trajectory.origin in REPAIRS
        assert trajectory.parent == case.failed.id
        assert trajectory.example_key == case.failed.example_key
        assert trajectory.edited is not None
        assert trajectory.steps[trajectory.edited].predictor in editable
