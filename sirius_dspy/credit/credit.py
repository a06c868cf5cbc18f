"""Credit by replay: how it is measured, and what it is used for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sirius_dspy import checks
from sirius_dspy.credit.values import StepCredit
from sirius_dspy.errors import SettingsError
from sirius_dspy.training.curate import Appraisal
from sirius_dspy.trajectory import Trajectory

NO_DIFFERENCE = "made no difference"
LUCKY = "built on a step that did harm"

LEAST_WEIGHT = 0.1
"""Of a row whose step was judged harmful and is kept."""

Credits = Mapping[str, Mapping[int, StepCredit]]
"""Id of a run to the credits of its steps by position."""


@dataclass(frozen=True)
class Credit:
    """How much each step of a run mattered, by replay: hold the run up to the step, answer it anew, and run on live.

    The value of a step is the share of successes when its recorded answer is held and everything after it is asked
    again; so its own lucky ending does not count. Its credit is this value less that of the alternatives: answers of
    the same agent, by the same LM, to the same inputs. In a run of n steps this takes up to n(n + 1) / 2 calls for
    each alternative, and n(n - 1) / 2 for each continuation. Reruns are kept in the library with the origin `credit`,
    and are never trained on.

    Attributes:
        alternatives: New answers per step.
        temperature: Of the alternatives. What follows is asked as it was in the run.
        continuations: Reruns with the recorded answer, for steps that others follow. Alternatives that equal the
            recorded answer count as further ones, so that one is enough for agents who often repeat themselves.
        max_runs: Successful runs whose steps are valued in one iteration at most, and as many failed ones; `None` for
            all. Those of many examples come before several of one.
        drop: Whether steps with a credit of at most `threshold` become no rows, and neither do steps that come after
            one whose credit is negative: their success was luck.
        weigh: Whether rows are weighted by 1 + credit.
        order: Whether failed runs are valued, too, so that a repair begins at the step whose alternatives gain most.
        threshold: Highest credit of a step that is dropped.
        evidence: How many alternatives must differ from the recorded answer for a step to be dropped or weighted. With
            fewer, or where no rerun succeeded, nothing is known of it, and it is kept as it is.

    References:
        C3 (arXiv:2603.06859) subtracts the mean of alternatives in the same context; VinePPO (arXiv:2410.01679) takes
        the share of continuations that succeed as the value of a step.
    """

    alternatives: int = 4
    temperature: float = 1.0
    continuations: int = 1
    max_runs: int | None = None
    drop: bool = True
    weigh: bool = False
    order: bool = True
    threshold: float = 0.0
    evidence: int = 2

    def check(self) -> None:
        """Refuse settings of the wrong kind, and those that contradict each other.

        Raises:
            SettingsError: The message names the setting.
        """
        checks.check(type(self).__name__, vars(self), _KINDS)
        if self.evidence > self.alternatives:
            raise SettingsError(
                f"`evidence` of Credit is {self.evidence}, but a step has only {self.alternatives} alternatives, so no "
                "step could ever be judged. Choose a lower number, or more `alternatives`."
            )

    def num_calls(self, num_steps: float) -> tuple[float, float]:
        """Reruns of one run, and the LM calls that they make, if all of its steps are valued.

        Args:
            num_steps: Steps of the run.
        """
        reruns = self.alternatives * num_steps + self.continuations * max(0.0, num_steps - 1)
        anew = self.alternatives * num_steps * (num_steps + 1) / 2
        return reruns, anew + self.continuations * num_steps * max(0.0, num_steps - 1) / 2

    def appraise(self, run: Trajectory, position: int, credits: Mapping[int, StepCredit]) -> Appraisal:
        """What a step is worth as a training row.

        Args:
            run: The run that it is from.
            position: Of the step.
            credits: The credits of the run's steps by position.
        """
        judged = {key: found for key, found in credits.items() if found.has_evidence(self.evidence)}
        if self.drop and _is_lucky(run, position, judged):
            return Appraisal(LUCKY)
        found = judged.get(position)
        if found is None:
            return Appraisal()
        if self.drop and found.credit <= self.threshold:
            return Appraisal(NO_DIFFERENCE)
        return Appraisal(weight=max(LEAST_WEIGHT, 1 + found.credit)) if self.weigh else Appraisal()


def _is_lucky(run: Trajectory, position: int, judged: Mapping[int, StepCredit]) -> bool:
    """Whether the run went wrong before this step."""
    start = run.steps[position].started
    return any(found.credit < 0 and run.steps[place].ended <= start for place, found in judged.items())


_KINDS = {
    "alternatives": checks.whole(1),
    "temperature": checks.number(above=0),
    "continuations": checks.whole(1),
    "max_runs": checks.optional(checks.whole(1)),
    "drop": checks.FLAG,
    "weigh": checks.FLAG,
    "order": checks.FLAG,
    "threshold": checks.number(-1, below=1),
    "evidence": checks.whole(1),
}
