"""The right steps of a run, which tasks of this package can compute for each example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import dspy

from sirius_dspy.errors import DatasetError


class AnyStep(Protocol):
    """What an oracle reads of a step, recorded or gold."""

    @property
    def predictor(self) -> str:
        """The name of the agent."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The inputs by field."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any] | None:
        """The outputs by field; `None` if the call failed."""
        ...


class GoldStep(NamedTuple):
    """A call of one agent that is right."""

    predictor: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


def as_demonstrations(steps: Iterable[GoldStep]) -> dict[str, list[dspy.Example]]:
    """Return the steps as demonstrations by predictor, without repeated ones."""
    demos: dict[str, list[dspy.Example]] = defaultdict(list)
    for step in steps:
        demo = dspy.Example(**step.inputs, **step.outputs).with_inputs(*step.inputs)
        if demo not in demos[step.predictor]:
            demos[step.predictor].append(demo)
    return dict(demos)


def output_of(step: AnyStep, field: str) -> str:
    """Return an output as text; empty if the call failed or the field is missing."""
    return str((step.outputs or {}).get(field) or "")


def check_form(single: bool, reasoning: bool) -> None:
    """Refuse a form that no program has.

    Raises:
        DatasetError: `reasoning` is set for the team.
    """
    if reasoning and not single:
        raise DatasetError("`reasoning` is set without `single`. Only the single agent has a reasoning field.")
