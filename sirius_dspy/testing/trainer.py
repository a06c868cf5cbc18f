"""A trainer that returns given LMs, and contract tests for trainers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Message, Request

from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.training.trainers import Trainer, TrainingRequest


class ScriptedTrainer(Trainer):
    """A trainer that returns given LMs instead of training.

    Args:
        lms: The "trained" LM of each agent, or a function from the `TrainingRequest` to it.

    Attributes:
        requests: The training requests, in order.
        checked: The agents that `check` was called with.
    """

    def __init__(self, lms: Mapping[str, dspy.LM] | Callable[[TrainingRequest], dspy.LM]) -> None:
        self.lms = lms
        self.requests: list[TrainingRequest] = []
        self.checked: list[str] = []

    def check(self, agent: str, lm: dspy.LM) -> None:
        """Refuse an agent that is not in the mapping."""
        self.checked.append(agent)
        self._refuse_unknown(agent)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """Return true: nothing is trained, so any rows are accepted."""
        return True

    def train(self, request: TrainingRequest) -> dspy.LM:
        """Record the request and return the agent's LM."""
        self._refuse_unknown(request.agent)
        if not request.rows:
            raise TrainingError(f"Agent {request.agent!r} has no training rows.", agent=request.agent)
        self.requests.append(request)
        return self.lms[request.agent] if isinstance(self.lms, Mapping) else self.lms(request)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """Return the LM with that id from the mapping, or a copy of `lm` with that id."""
        candidates = self.lms.values() if isinstance(self.lms, Mapping) else ()
        return next((candidate for candidate in candidates if candidate.model == model), None) or lm.copy(model=model)

    def _refuse_unknown(self, agent: str) -> None:
        if isinstance(self.lms, Mapping) and agent not in self.lms:
            raise UnpreparedProgramError(
                f"The scripted trainer has no LM for agent {agent!r}, only for {sorted(self.lms)}. Add one to `lms`."
            )


ROWS: tuple[dict[str, Any], ...] = (
    {
        "messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": "question: What color is grass?"},
            {"role": "assistant", "content": "green"},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": "question: What color is snow?"},
            {"role": "assistant", "content": "white"},
        ]
    },
)
"""A training set with two rows."""


class TrainerContract:
    """Tests that every `Trainer` must pass. Subclass it with three fixtures.

    - `trainer`: a new trainer,
    - `lm`: an LM of the agent `solver` that it can train,
    - `refused`: a pair of agent and LM that it must refuse.

    Examples:
        ```python
        class TestMyTrainer(TrainerContract):
            @pytest.fixture
            def trainer(self):
                return MyTrainer()
        ```
    """

    def test_check_accepts_an_lm_that_can_be_trained(self, trainer: Trainer, lm: dspy.LM) -> None:
        """A check does not train and does not raise."""
        model = lm.model
        trainer.check("solver", lm)
        assert lm.model == model

    def test_check_refuses_with_the_name_of_the_agent(self, trainer: Trainer, refused: tuple[str, dspy.LM]) -> None:
        """The refusal comes before any LM call, and names the agent."""
        import pytest

        with pytest.raises(UnpreparedProgramError, match=re.escape(refused[0])):
            trainer.check(*refused)

    def test_training_gives_another_lm(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """New weights have a new id, and the LM that training started from keeps its id."""
        model = lm.model
        trained = trainer.train(_request(lm, tmp_path))
        assert isinstance(trained, dspy.LM)
        assert trained is not lm
        assert trained.model != model == lm.model

    def test_the_trained_lm_answers(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """It answers after `launch`, which may be called repeatedly; DSPy's default does nothing."""
        trained = trainer.train(_request(lm, tmp_path))
        trained.launch()
        trained.launch()
        assert isinstance(_answer(trained), str)

    def test_the_trained_lm_answers_under_other_settings(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """Predictors that share weights call them through copies with their own settings."""
        trained = trainer.train(_request(lm, tmp_path))
        trained.launch()
        copied = trained.copy(temperature=0.0, max_tokens=5)
        assert copied.model == trained.model
        assert isinstance(_answer(copied), str)

    def test_the_lm_that_training_started_from_still_answers(
        self, trainer: Trainer, lm: dspy.LM, tmp_path: Path
    ) -> None:
        """New weights that do not help are replaced by it."""
        settings = dict(lm.kwargs)
        trainer.train(_request(lm, tmp_path)).launch()
        assert lm.kwargs == settings
        assert isinstance(_answer(lm), str)

    def test_rows_stay_as_they_are(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """The training set has been saved, so a trainer must not change it."""
        rows = copy.deepcopy(ROWS)
        trainer.train(_request(lm, tmp_path, rows))
        assert rows == ROWS

    def test_progress_counts_up_to_its_total(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """Progress reports are optional, but they must be in order and have a finite loss."""
        reports: list[tuple[int, int, float]] = []
        trainer.train(_request(lm, tmp_path, on_progress=lambda *report: reports.append(report)))
        assert [step for step, _, _ in reports] == sorted(step for step, _, _ in reports)
        assert all(0 <= step <= total and math.isfinite(loss) for step, total, loss in reports)

    def test_training_several_gives_one_lm_for_each(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """`train_all` yields as many LMs as there are requests, and the LM that they started from keeps its id."""
        model = lm.model
        requests = [_request(lm, tmp_path / str(number), ROWS[:number]) for number in (1, 2)]
        for request in requests:
            request.workdir.mkdir()
        trained = list(trainer.train_all(requests))
        assert len(trained) == len(requests)
        assert model == lm.model
        for new in trained:
            new.launch()
            assert new.model != model
            assert isinstance(_answer(new), str)
        assert list(trainer.train_all([])) == []

    def test_no_rows_is_an_error(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """An LM that learned nothing must not count as trained."""
        import pytest

        with pytest.raises(TrainingError):
            trainer.train(_request(lm, tmp_path, rows=()))

    def test_costs_can_be_planned(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """A price is a number that is not negative, or unknown; a job that was not asked for has not begun."""
        request, price = _request(lm, tmp_path), trainer.price(lm)
        assert price is None or (math.isfinite(price) and price >= 0)
        assert trainer.trained_tokens(request) >= 0
        assert trainer.num_epochs(lm, len(ROWS)) >= 1
        assert not trainer.has_begun(request)

    def test_restore_gives_the_trained_lm_back(self, trainer: Trainer, lm: dspy.LM, tmp_path: Path) -> None:
        """A resumed compile reuses a finished job, whose LM gives the same answers."""
        trained = trainer.train(_request(lm, tmp_path))
        restored = trainer.restore(lm, trained.model, tmp_path)
        restored.launch()
        assert restored.model == trained.model
        assert isinstance(_answer(restored), str)


def _answer(lm: dspy.LM) -> Any:
    return lm(Request(model=lm.model, messages=(Message.user("question: What color is grass?"),))).text


def _request(
    lm: dspy.LM,
    workdir: Path,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    on_progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> TrainingRequest:
    return TrainingRequest(agent="solver", lm=lm, rows=rows, workdir=workdir, seed=0, on_progress=on_progress)
