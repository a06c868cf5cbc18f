"""Metrics: what may be one, how it is called, and the numbers that it returns."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from sirius_dspy.errors import MetricError
from sirius_dspy.running.examples import shorten_example

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None)`, as in DSPy: it returns a number, a bool, or a `dspy.Prediction` with
`score` and, where agents have rewards of their own, `rewards={agent: number}`."""


@dataclass(frozen=True)
class Score:
    """What a metric said of one run."""

    reward: float
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Rewards of single agents, by agent or predictor name."""


def call_metric(metric: Metric, example: dspy.Example, prediction: Any, trace: Any) -> Any:
    """Call a metric that takes (example, prediction, trace) or only (example, prediction).

    Without a trace it is called with two arguments if it can be, as `dspy.Evaluate` does.

    Raises:
        MetricError: It takes neither.
    """
    if callable(metric) and _accepts(metric, 3) and (trace is not None or not _accepts(metric, 2)):
        return metric(example, prediction, trace)
    check_metric(metric)
    return metric(example, prediction)


def check_metric(metric: Any) -> None:
    """Refuse what is not a metric.

    Raises:
        MetricError: It cannot be called with an example and a prediction.
    """
    if not callable(metric):
        raise MetricError(
            f"The metric is {metric!r}, expected a function `metric(example, prediction, trace=None)` that returns a "
            "number."
        )
    if not _accepts(metric, 3) and not _accepts(metric, 2):
        raise MetricError(
            f"The metric {metric!r} must take (example, prediction, trace=None); it takes {inspect.signature(metric)}."
        )


def _accepts(metric: Metric, number: int) -> bool:
    """Whether a metric can be called with so many positional arguments; some builtins do not say, and count as if."""
    try:
        inspect.signature(metric).bind(*[None] * number)
    except ValueError:
        return True
    except TypeError:
        return False
    return True


def to_score(value: Any, example: dspy.Example) -> Score:
    """Turn what a metric returned into numbers.

    Raises:
        MetricError: It is `None`, NaN, infinite, a string, or anything else that is not a number.
    """
    if isinstance(value, dspy.Prediction):
        fields = value.toDict()
        rewards = fields.get("rewards") or {}
        if not isinstance(rewards, Mapping):
            raise _metric_error(value, example)
        by_agent = {str(agent): _to_number(reward, example) for agent, reward in rewards.items()}
        return Score(_to_number(fields.get("score"), example), by_agent)
    return Score(_to_number(value, example))


def _to_number(value: Any, example: dspy.Example) -> float:
    # numbers.Real covers bool and Python's numbers; NumPy's scalars and one-element tensors have `item`.
    try:
        plain = value.item() if hasattr(value, "item") else value
        number = float(plain) if isinstance(plain, numbers.Real) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several numbers, or one that no float can hold
        number = math.nan
    if not math.isfinite(number):
        raise _metric_error(value, example)
    return number


def _metric_error(value: Any, example: dspy.Example) -> MetricError:
    return MetricError(
        f"The metric returned {_show(value)} for the example with inputs {shorten_example(example)}. It must return a "
        "finite number, a bool, or a `dspy.Prediction` with such a `score`, and `rewards` by agent where it gives them."
    )


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # whole numbers of thousands of digits, and objects of the user
        return f"a value of type {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 200
"""Characters of a value in a message."""
