"""The least help: run the program again, with solved runs of similar examples as demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import dspy

from sirius_dspy import checks
from sirius_dspy.repair.augmenters import Augmenter, RepairOutcome
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.context import RepairContext
from sirius_dspy.repair.reliance import mean_difference
from sirius_dspy.repair.trial import judge
from sirius_dspy.trajectory import Attempt, Repair, Trajectory


class ResampleAugmenter(Augmenter):
    """Runs the program again, with the nearest solved runs of the library as demonstrations.

    Nothing of the answer is shown, so all steps of a run that succeeds become rows, with prompts that have no
    demonstrations.

    Args:
        samples: Runs per failed example at most; the first success ends the repair.
        num_demos: Demonstrations per predictor, from as many solved runs. 0 shows those of collecting, if there are.
        max_repairs: Failed runs to repair in one iteration at most; `None` for all.

    References:
        `dspy.KNNFewShot` shows the nearest examples in the same way, with an embedding; Memory-R+ (arXiv:2504.02273)
        finds that small models profit from solved neighbors.
    """

    def __init__(self, *, samples: int = 2, num_demos: int = 4, max_repairs: int | None = None) -> None:
        self.samples = samples
        self.num_demos = num_demos
        self.max_repairs = max_repairs

    def check(self, program: dspy.Module) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """
        kinds = {
            "samples": checks.whole(1),
            "num_demos": checks.whole(0),
            "max_repairs": checks.optional(checks.whole(0)),
        }
        checks.check(type(self).__name__, vars(self), kinds)

    def num_calls(self, num_steps: int) -> tuple[int, int]:
        """See `Augmenter.num_calls`: each sample is a run."""
        return num_steps, self.samples * num_steps

    def repair(self, failed: Trajectory, example: dspy.Example, context: RepairContext) -> RepairOutcome:
        """See `Augmenter.repair`."""
        case = Case(failed, example, context)
        attempts: list[Attempt] = []
        trajectories: list[Trajectory] = []
        demos = self._demos(context, example)
        position = next((number for number, step in enumerate(failed.steps) if context.may_edit(failed, step)), None)
        for sample in range(self.samples if position is not None else 0):
            trajectory = context.rerun(failed, example, f"resample/{sample}", demos)
            verdict, runs = judge(case, trajectory, f"resample/{sample}")
            attempt = case.attempt(position or 0, verdict, reward=trajectory.reward, trajectory=runs[0].id)
            trajectories += runs
            if verdict == "repaired":
                attempts.append(replace(attempt, reliance=_reliance(case, trajectory, demos)))
                break
            attempts.append(attempt)
        repair = Repair(failed.id, tuple(attempts), failed.run, failed.iteration)
        return RepairOutcome(repair, tuple(trajectories))

    def _demos(self, context: RepairContext, example: dspy.Example) -> dict[str, list[dspy.Example]]:
        """The demonstrations of collecting, and of each predictor the nearest, so that the nearest stand last."""
        nearest = context.solved.find_demos(context.program, example, self.num_demos) if self.num_demos else {}
        given = {name: list(demos) for name, demos in context.rollouts.demos.items()}
        names = {*given, *nearest}
        return {name: [*given.get(name, ())[len(nearest.get(name, ())) :], *nearest.get(name, ())] for name in names}


def _reliance(case: Case, trajectory: Trajectory, demos: Mapping[str, Sequence[dspy.Example]]) -> float | None:
    """How much the steps of a run rely on the demonstrations."""
    run = replace(case, failed=trajectory)
    pairs = [
        (
            run.log_probs(position, outputs, demos=demos[step.predictor]),
            run.log_probs(position, outputs),
        )
        for position, step in enumerate(trajectory.steps)
        if step.predictor in demos
        and case.context.may_edit(trajectory, step)
        and (outputs := run.fields_of(position)) is not None
    ]
    return mean_difference(pairs)
