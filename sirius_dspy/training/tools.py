"""Refuses agents whose native tool calls their trainer cannot put into rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.running.native import tool_calls_field
from sirius_dspy.training.trainers import Trainer


def check_tools(
    program: dspy.Module,
    examples: Iterable[dspy.Example],
    agents: Mapping[str, Sequence[str]],
    lms: Mapping[str, dspy.LM],
    adapter: Adapter,
    trainer: Trainer,
) -> None:
    """Refuse agents that call tools natively, or read of such calls in a `dspy.History`, if rows cannot hold that.

    Args:
        program: The student.
        examples: Of the trainset; a history may be among their inputs.
        agents: Those that are to be trained, with their predictors.
        lms: The LM of each.
        adapter: It decides whether tool calls are native, for LMs that can make them.
        trainer: It knows whether an LM can be trained on them.

    Raises:
        UnpreparedProgramError: The message names the agent and the field.
    """
    if not getattr(adapter, "use_native_function_calling", False):
        return
    predictors = predictor_names(program)
    has_calls = any(tool_calls_field(signature_of(predictor)) for predictor in predictors.values()) or any(
        _is_history_of_tools(value) for example in examples for value in dict(example.inputs()).values()
    )
    for agent, names in agents.items():
        for name in names:
            signature, lm = signature_of(predictors[name]), lms[agent]
            field = tool_calls_field(signature)
            if field and getattr(lm, "supports_function_calling", False):
                _check_choice(agent, name, predictors[name], lm)
            else:
                field = _history_field(signature) if has_calls else ""
            if field and not trainer.trains_on_tools(lm):
                raise UnpreparedProgramError(
                    f"Agent {agent!r} cannot be trained: {name!r} has native tool calls in its field {field!r}, and "
                    f"{lm.model!r} cannot be trained on them here. Let the agent write them as text with "
                    f"`dspy.configure(adapter=dspy.{_class_name(adapter)}(use_native_function_calling=False))`, leave "
                    f"it as it is with `SiriuS(frozen=[{agent!r}])`, or give it an LM and a trainer that can, such as "
                    "`HostedTrainer()`; a trainer says so by its `trains_on_tools(lm)`, a provider by an attribute "
                    "`trains_on_tools`."
                )


def _check_choice(agent: str, name: str, predictor: dspy.Predict, lm: dspy.LM) -> None:
    """Refuse a choice of tools that is set for all calls, since no step would then become a row."""
    choice = {**lm.kwargs, **predictor.config}.get("tool_choice")
    if choice not in (None, "auto"):
        raise UnpreparedProgramError(
            f"Agent {agent!r} cannot be trained: `tool_choice` of {name!r} is {choice!r}, and training rows cannot say "
            "that tools must be called, or which. Leave it out of the LM's arguments and the predictor's `config`, or "
            f"freeze the agent with `SiriuS(frozen=[{agent!r}])`."
        )


def _history_field(signature: type[dspy.Signature]) -> str:
    """Return the input field that takes a conversation; empty if there is none."""
    return next((name for name, info in signature.input_fields.items() if info.annotation == dspy.History), "")


def _is_history_of_tools(value: Any) -> bool:
    """Return whether a conversation has a turn with tool calls."""
    turns = value.messages if isinstance(value, dspy.History) else ()
    return any(isinstance(part, dspy.ToolCalls) for turn in turns for part in turn.values())


def _class_name(adapter: Any) -> str:
    """Return the class of DSPy that the adapter is of, or that it extends."""
    return next(kind.__name__ for kind in type(adapter).__mro__ if kind.__module__.startswith("dspy."))
