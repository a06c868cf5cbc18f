"""Runs as texts: every value as words, and long ones cut, so that a page stays small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sirius_dspy.plain import readable
from sirius_dspy.redact import hide_keys
from sirius_dspy.trajectory import Failure, Step, Trajectory
from sirius_dspy.window.views import StepView, TrajectoryView

MOST = 600
"""Characters of a value that are shown."""

_ID = 12
"""Characters of an id that are shown, enough to find the run with `sirius-dspy library show`."""


def trajectory_view(trajectory: Trajectory, threshold: float) -> TrajectoryView:
    """A run as texts."""
    return TrajectoryView(
        id=trajectory.id[:_ID],
        origin=trajectory.origin,
        iteration=trajectory.iteration,
        reward=trajectory.reward,
        succeeded=trajectory.succeeded(threshold),
        prediction="" if trajectory.prediction is None else to_text(trajectory.prediction),
        failure=_failure(trajectory.failure),
        seconds=trajectory.seconds,
        steps=tuple(
            _step(step, is_edited=position == trajectory.edited) for position, step in enumerate(trajectory.steps)
        ),
    )


def to_text(value: Any) -> str:
    """A value for a reader: a text as it is, everything else as JSON; only its beginning if it is long."""
    plain = readable(value)
    text = hide_keys(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str))
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
    return text if len(text) <= MOST else f"{text[:MOST]} … ({len(text):,} characters)"


def _step(step: Step, *, is_edited: bool) -> StepView:
    return StepView(step.predictor, _fields(step.inputs), _fields(step.outputs), _failure(step.failure), is_edited)


def _fields(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: to_text(value) for name, value in (values or {}).items()}


def _failure(failure: Failure | None) -> str:
    return "" if failure is None else to_text(f"{failure.kind}: {failure.message}")
