"""A program's predictors and their LMs by name, and how the program is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from sirius_dspy.errors import UnpreparedProgramError


def predictor_names(program: dspy.Module) -> dict[str, dspy.Predict]:
    """The program's predictors by dotted name, as `named_predictors` gives them.

    Raises:
        UnpreparedProgramError: Its modules hold each other in a circle.
    """
    try:
        return dict(program.named_predictors())
    except RecursionError as error:
        raise UnpreparedProgramError(
            f"The modules of {type(program).__name__} hold each other in a circle, as a child does that has an "
            "attribute for its parent, and DSPy looks for predictors there without end. Leave out one direction: pass "
            "to the child's `forward` what it needs."
        ) from error


def lms_of(program: dspy.Module) -> dict[str, Any]:
    """Each predictor's own LM by predictor name; `None` where it has none."""
    return {name: predictor.lm for name, predictor in predictor_names(program).items()}


def set_lms(program: dspy.Module, lms: Mapping[str, Any]) -> None:
    """Give predictors other LMs, in place.

    Args:
        program: Whose predictors.
        lms: Predictor name to LM; predictors that are not named keep theirs.

    Raises:
        UnpreparedProgramError: A name is no predictor's.
    """
    predictors = predictor_names(program)
    if unknown := sorted(set(lms) - set(predictors)):
        raise UnpreparedProgramError(f"There are LMs for {unknown}; the predictors are {list(predictors)}.")
    for name, lm in lms.items():
        predictors[name].lm = lm


def is_called(program: dspy.Module) -> bool:
    """Whether `program(...)` runs it: it has a `forward`, of its class or set on the object, or a `__call__`."""
    own_call = type(program).__call__ is not dspy.Module.__call__
    return own_call or hasattr(type(program), "forward") or "forward" in vars(program)


def is_awaited(program: dspy.Module) -> bool:
    """Whether `program.acall(...)` runs it: it has an `aforward`, of its class or set on the object, or an `acall`."""
    own_call = type(program).acall is not dspy.Module.acall
    return own_call or hasattr(type(program), "aforward") or "aforward" in vars(program)
