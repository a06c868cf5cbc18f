"""What a recorded step gave, made again without asking the LM."""

from __future__ import annotations

from typing import Any

from dspy.utils.exceptions import AdapterParseError

from sirius_dspy.program import restore_values
from sirius_dspy.trajectory import Failure, Step


def restore_outputs(step: Step, signature: Any) -> list[dict[str, Any]]:
    """Return all completions of a step that succeeded.

    Raises:
        UnreadableValueError: A value is of a class that this process has not used yet.
    """
    return [restore_values(outputs, signature.output_fields) for outputs in (step.outputs or {}, *step.others)]


def recorded_error(step: Step, signature: Any) -> Exception:
    """Return the exception of a step that failed, with the same message."""
    failure = step.failure or Failure("RuntimeError", "the recorded call has no outputs")
    if failure.completion is None:
        return RuntimeError(f"{failure.kind}: {failure.message}")
    error = AdapterParseError(adapter_name="recorded", signature=signature, lm_response=failure.completion)
    error.args = (failure.message,)
    return error
