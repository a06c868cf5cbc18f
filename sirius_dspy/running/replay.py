"""Run a recorded program again with one step's outputs replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import dspy

from sirius_dspy.errors import ReplayDivergedError, UnreadableValueError
from sirius_dspy.plain import coerce
from sirius_dspy.running.record import arun_tape, run_tape
from sirius_dspy.running.recording import Recording, Sampling
from sirius_dspy.running.restoring import recorded_error, restore_outputs
from sirius_dspy.running.tape import Call, Tape
from sirius_dspy.trajectory import Edit, Step, Trajectory, Values, canonical


def replay(
    program: dspy.Module, inputs: Values, recorded: Trajectory, edit: Edit, sampling: Sampling | None = None
) -> Recording:
    """Run the program again with one step's outputs replaced.

    Calls whose inputs equal those of a recorded step are answered from the recording, all others ask the LM. So what
    came before the edit costs nothing, and after it only what the edit changed is asked again.

    Args:
        program: The program that was recorded.
        inputs: The inputs it was recorded with.
        recorded: Its trajectory; the steps may come from disk.
        edit: The step to replace, and its new outputs as plain values, one for every output field of its signature.
        sampling: How to ask the LMs in the calls that are made again.

    Raises:
        ReplayDivergedError: The run did not repeat the recording up to the edit, or never got there, or the edit does
            not name the output fields of the step.
        UnrecordableCallError: A predictor was called where recording cannot see it.

    References:
        Algorithm 2 of SiriuS (arXiv:2502.04780), with its step `S_j = Sus(A(k)) ^ Pre(A(j))` read as: whoever reads the
        repaired answer answers again, everybody else keeps their answer.
    """
    tape = ReplayTape(program, sampling or Sampling(), recorded.steps, edit)
    return tape.check(run_tape(tape, inputs))


async def areplay(
    program: dspy.Module, inputs: Values, recorded: Trajectory, edit: Edit, sampling: Sampling | None = None
) -> Recording:
    """Like `replay`, awaiting `program.acall`."""
    tape = ReplayTape(program, sampling or Sampling(), recorded.steps, edit)
    return tape.check(await arun_tape(tape, inputs))


class ReplayTape(Tape):
    """A run that answers from a recording where the inputs are the same, and edits one step.

    Args:
        program: The program that was recorded.
        sampling: How to ask the LMs in the calls that are made again.
        recorded: The steps to answer from.
        edit: The step to replace.
    """

    def __init__(self, program: dspy.Module, sampling: Sampling, recorded: Sequence[Step], edit: Edit) -> None:
        super().__init__(program, sampling)
        self.edit = edit
        self.target = recorded[edit.position]
        # Steps that had not ended when the target began cannot have read it, nor it them; those after it may.
        self._required = {id(step) for step in recorded if step.started < self.target.started}
        self._answers: dict[tuple[str, str], list[Step]] = defaultdict(list)
        for step in recorded:
            self._answers[step.predictor, canonical(step.inputs)].append(step)
        self._replayed: set[int] = set()
        self._edited_call: tuple[str, int] | None = None
        self._problem = ""

    def canned_outputs(self, call: Call, signature: Any) -> list[dict[str, Any]] | None:
        """Return the recorded or the edited outputs; raise again what the recorded call raised."""
        step = self._next_answer(call)
        if step is self.target:
            return self.target_outputs(call, signature)
        if step is not None:
            with self._lock:
                self._replayed.add(id(step))
            return self.recorded_outputs(call, step, signature)
        if self._edited_call is None:
            self._diverge(f"{call.predictor!r} was called with inputs that the recording does not have")
        return None

    def target_outputs(self, call: Call, signature: Any) -> list[dict[str, Any]] | None:
        """Return the outputs of the edited step, which stand for all the completions that were asked for."""
        call.repeat(self.target)
        if self.edit.outputs != self.target.outputs:
            call.finish = ""  # the edit is a whole answer to what was sent, however the first one ended
        edited, others = self._edited_outputs(call, signature), self.target.others
        if self.edit.outputs == self.target.outputs:
            return [edited, *restore_outputs(self.target, signature)[1:]]
        return [edited, *(dict(edited) for _ in others)]  # programs count, compare or vote over what they asked for

    def recorded_outputs(self, call: Call, step: Step, signature: Any) -> list[dict[str, Any]]:
        """Return what was recorded, or raise again what was."""
        call.source, call.lm = "recorded", step.lm
        call.repeat(step)
        if step.outputs is None:
            raise recorded_error(step, signature)
        try:
            return restore_outputs(step, signature)
        except UnreadableValueError as error:
            self._diverge(f"the outputs of {call.predictor!r} cannot be made again: {error}")

    def note_target(self, call: Call) -> None:
        """Note that the program has come to the edited step."""
        with self._lock:
            self._edited_call = call.predictor, call.occurrence

    def check(self, recording: Recording) -> Recording:
        """Return the recording with the position of the edit.

        Raises:
            ReplayDivergedError: The run differs from the recorded one in more than the edit.
        """
        if self._problem:
            raise ReplayDivergedError(self._message(self._problem))
        if self._edited_call is None:
            raise ReplayDivergedError(self._message("the edited step was not reached"))
        if missing := self._required - self._replayed:
            raise ReplayDivergedError(
                self._message(f"{len(missing)} recorded calls before the edit did not come again")
            )
        calls = [(step.predictor, step.occurrence) for step in recording.steps]
        return replace(recording, edited=calls.index(self._edited_call))

    def _next_answer(self, call: Call) -> Step | None:
        predictor, question, number = call.twin
        answers = self._answers.get((predictor, question), [])
        return answers[number] if number < len(answers) else None

    def _edited_outputs(self, call: Call, signature: Any) -> dict[str, Any]:
        if set(self.edit.outputs) != set(signature.output_fields):
            fields = sorted(signature.output_fields)
            self._diverge(f"the edit has the fields {sorted(self.edit.outputs)}, the step has {fields}")
        call.source = "edited"
        self.note_target(call)
        fields = signature.output_fields
        try:
            return {name: coerce(value, fields[name].annotation) for name, value in self.edit.outputs.items()}
        except UnreadableValueError as error:
            self._diverge(f"the edit cannot be made: {error}")

    def _diverge(self, problem: str) -> NoReturn:
        """Stop the run before it asks an LM; noted as well, because programs may catch what their predictors raise."""
        with self._lock:
            self._problem = self._problem or problem
        raise ReplayDivergedError(self._message(problem))

    def _message(self, problem: str) -> str:
        return (
            f"The replay with an edit of step {self.edit.position} ({self.target.predictor!r}) did not repeat the "
            f"recording: {problem}. Replay needs control flow that depends on nothing but inputs and predictor "
            "outputs: take clocks, unseeded randomness, and what is kept from earlier runs out of `forward`."
        )
