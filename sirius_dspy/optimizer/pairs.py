"""Preference pairs of one agent, from the repairs of an iteration, for trainers that want them."""

from __future__ import annotations

from typing import Any

from sirius_dspy.library.preferences import pair_steps
from sirius_dspy.library.replies import has_native_tools
from sirius_dspy.optimizer.session import Session
from sirius_dspy.plain import digest
from sirius_dspy.running.prompt import Message
from sirius_dspy.training.prompts import PromptProbe
from sirius_dspy.trajectory import Step, Trajectory


def preference_pairs(session: Session, iteration: int, agent: str) -> list[dict[str, Any]]:
    """Return the pairs of an agent, each once, in an order that repeats.

    As with rows, those of earlier iterations belong to them if the curator is cumulative.
    """
    probe = PromptProbe(session.weights.program)

    def write(step: Step) -> tuple[Message | None, str]:
        is_native = has_native_tools(step)
        return probe.reply(step.predictor, step.inputs, step.outputs or {}, is_native=is_native)

    def is_own(trajectory: Trajectory, step: Step) -> bool:
        return step.predictor in session.plan.trained[agent] and session.weights.answered(trajectory, step)

    pairs: dict[str, dict[str, Any]] = {}
    for number in session.row_iterations(iteration):
        runs = session.library.pairs(threshold=session.settings.threshold, run=session.run, iteration=number)
        for failed, repaired in runs:
            for _, pair, _ in pair_steps(failed, repaired, write, is_own):
                if pair is not None:
                    pairs[digest(pair.row)] = pair.row
    return [pairs[id] for id in sorted(pairs)]
