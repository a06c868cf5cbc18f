"""Run a recorded program again from one step on, with nothing that came after it kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from sirius_dspy.running.record import run_tape
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.replay import ReplayTape
from sirius_dspy.running.tape import Call
from sirius_dspy.trajectory import Edit, Trajectory, Values


def rerun(
    program: dspy.Module,
    inputs: Values,
    recorded: Trajectory,
    position: int,
    sampling: Sampling,
    alternative: Mapping[str, Any] | None = None,
) -> Recording:
    """Run the program again from one step on: what could have been read by it is held, what follows is asked again.

    Unlike `replay`, nothing that began after the step ended is answered from the recording, not even a call with the
    same inputs: a lucky answer must not stay.

    Args:
        program: The program that was recorded.
        inputs: The inputs it was recorded with.
        recorded: Its trajectory; the steps may come from disk.
        position: The step, as an index into the steps.
        sampling: How to ask the LMs in live calls; its key names the sample.
        alternative: LM arguments with which the step itself is asked again, such as `{"temperature": 1.0}`; `None`
            holds its recorded answer, or its recorded error.

    Returns:
        The run; `edited` is the position of the step in it.

    Raises:
        ReplayDivergedError: The run did not repeat the recording up to the step.
        UnrecordableCallError: A predictor was called where recording cannot see it.
    """
    tape = _RerunTape(program, sampling, recorded, position, alternative)
    return tape.check(run_tape(tape, inputs))


class _RerunTape(ReplayTape):
    """Answers from a recording up to the end of one step."""

    def __init__(
        self,
        program: dspy.Module,
        sampling: Sampling,
        recorded: Trajectory,
        position: int,
        alternative: Mapping[str, Any] | None,
    ) -> None:
        end = recorded.steps[position].ended
        held = [step for step in recorded.steps if step.started < end]  # the step itself keeps its position
        super().__init__(program, sampling, held, Edit(position, {}))
        self._alternative = alternative
        self._asked: Call | None = None

    def target_outputs(self, call: Call, signature: Any) -> list[dict[str, Any]] | None:
        """Hold the step, or let the LM be asked."""
        self.note_target(call)
        if self._alternative is None:
            return self.recorded_outputs(call, self.target, signature)
        self._asked = call
        return None

    def sampled_kwargs(self, call: Call) -> Mapping[str, Any]:
        """Return the LM arguments of the step itself, or of what follows."""
        kwargs = super().sampled_kwargs(call)
        return {**kwargs, **(self._alternative or {})} if call is self._asked else kwargs
