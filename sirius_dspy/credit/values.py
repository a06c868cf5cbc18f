"""The credit of a step, computed from reruns of its run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sirius_dspy.trajectory import Step, Trajectory, canonical


@dataclass(frozen=True, slots=True)
class Rerun:
    """One rerun of a run from one step on."""

    position: int
    """Of the step in the run."""
    number: int
    """Of the rerun among those of the step."""
    is_alternative: bool
    """Whether the step was answered anew; otherwise its recorded answer was held."""
    is_same: bool
    """Whether the answer is the recorded one."""
    succeeded: bool


@dataclass(frozen=True, slots=True)
class StepCredit:
    """What one step of a run was worth: how much more often runs succeed with its answer than with another one."""

    trajectory: str
    """Id of the run."""
    position: int
    predictor: str
    value: float
    """Share of successes with the recorded answer held and what follows run again."""
    baseline: float
    """Mean share of successes over the alternatives: answers of the same agent to the same inputs."""
    held: int
    """Runs behind `value`, alternatives that equal the recorded answer among them."""
    alternatives: int
    different: int
    """Alternatives that differ from the recorded answer."""

    @property
    def credit(self) -> float:
        """The value less the baseline, from -1 to 1."""
        return self.value - self.baseline

    def has_evidence(self, least: int) -> bool:
        """Whether the credit says something: enough other answers were seen, and some rerun succeeded.

        Args:
            least: The number of different alternatives that is enough.
        """
        return self.different >= least and max(self.value, self.baseline) > 0


def follows(run: Trajectory, position: int) -> bool:
    """Whether a step of the run began after this one had ended."""
    end = run.steps[position].ended
    return any(step.started >= end for step in run.steps)


def find_position(run: Trajectory, rerun: Trajectory) -> int | None:
    """The position in the run of the step that a rerun starts from; steps that ran in parallel may have moved."""
    if rerun.edited is None:
        return None
    target = _question(rerun.steps[rerun.edited])
    twin = sum(_question(step) == target for step in rerun.steps[: rerun.edited])
    positions = [position for position, step in enumerate(run.steps) if _question(step) == target]
    return positions[twin] if twin < len(positions) else None


def read_rerun(run: Trajectory, rerun: Trajectory, succeeded: Callable[[Trajectory, str], bool]) -> Rerun | None:
    """What a stored rerun says; `None` if it does not belong to the run.

    Args:
        run: The run.
        rerun: A run of origin `credit` that has it as its parent.
        succeeded: Whether a run succeeded for one of its predictors.
    """
    position = find_position(run, rerun)
    if position is None or rerun.edited is None:
        return None
    step, again = run.steps[position], rerun.steps[rerun.edited]
    return Rerun(
        position,
        rerun.sample,
        is_alternative=again.source == "live",
        is_same=_answer(step) == _answer(again),
        succeeded=succeeded(rerun, step.predictor),
    )


def step_credits(
    run: Trajectory, reruns: Iterable[Rerun], succeeded: Callable[[Trajectory, str], bool]
) -> list[StepCredit]:
    """The credit of each step that was rerun with both its own answer and others, in call order.

    An alternative that equals the recorded answer is one more rerun with it. So where all are equal, the credit is 0.
    With nothing after the step, its own answer can only end as it did.

    Args:
        run: The run.
        reruns: Its reruns.
        succeeded: Whether a run succeeded for one of its predictors.
    """
    by_position: dict[int, list[Rerun]] = {}
    for rerun in reruns:
        by_position.setdefault(rerun.position, []).append(rerun)
    found = (_step_credit(run, position, by_position[position], succeeded) for position in sorted(by_position))
    return [credit for credit in found if credit is not None]


def _step_credit(
    run: Trajectory, position: int, reruns: Sequence[Rerun], succeeded: Callable[[Trajectory, str], bool]
) -> StepCredit | None:
    predictor = run.steps[position].predictor
    held = [rerun.succeeded for rerun in reruns if rerun.is_same or not rerun.is_alternative]
    if not follows(run, position):
        held.append(succeeded(run, predictor))
    alternatives = [rerun for rerun in reruns if rerun.is_alternative]
    if not held or not alternatives:
        return None
    value = sum(held) / len(held)
    baseline = sum(value if rerun.is_same else rerun.succeeded for rerun in alternatives) / len(alternatives)
    different = sum(not rerun.is_same for rerun in alternatives)
    return StepCredit(run.id, position, predictor, value, baseline, len(held), len(alternatives), different)


def _question(step: Step) -> tuple[str, str]:
    return step.predictor, canonical(step.inputs)


def _answer(step: Step) -> str:
    """What was answered; DSPy adds `logprobs` if the LM returns them."""
    outputs = step.outputs
    return canonical(outputs and {name: value for name, value in outputs.items() if name != "logprobs"})
