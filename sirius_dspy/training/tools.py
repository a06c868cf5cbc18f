"""Refuses agents whose replies are native tool calls, which training rows cannot hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.program import predictor_names, signature_of


def check_tools(
    program: dspy.Module, agents: Mapping[str, Sequence[str]], lms: Mapping[str, dspy.LM], adapter: Adapter
) -> None:
    """Refuse agents that call tools natively: a row is text, and their replies are not.

    Args:
        program: The student.
        agents: Those that are to be trained, with their predictors.
        lms: The LM of each.
        adapter: It decides whether tool calls are native, for LMs that can make them.

    Raises:
        UnpreparedProgramError: The message names the agent and the field.
    """
    if not getattr(adapter, "use_native_function_calling", False):
        return
    predictors = predictor_names(program)
    for agent, names in agents.items():
        for name in names:
            field = _tool_calls_field(signature_of(predictors[name]))
            if field and getattr(lms[agent], "supports_function_calling", False):
                raise UnpreparedProgramError(
                    f"Agent {agent!r} cannot be trained: {name!r} gets its tool calls ({field!r}) natively from "
                    f"{lms[agent].model!r}, and training rows hold only texts. Let it write them as text with "
                    f"`dspy.configure(adapter=dspy.{_class_name(adapter)}(use_native_function_calling=False))`, or "
                    f"leave it as it is with `SiriuS(frozen=[{agent!r}])`."
                )


def _tool_calls_field(signature: type[dspy.Signature]) -> str:
    """Return the output field that takes tool calls; empty if there is none."""
    return next((name for name, info in signature.output_fields.items() if info.annotation == dspy.ToolCalls), "")


def _class_name(adapter: Any) -> str:
    """Return the class of DSPy that the adapter is of, or that it extends."""
    return next(kind.__name__ for kind in type(adapter).__mro__ if kind.__module__.startswith("dspy."))
