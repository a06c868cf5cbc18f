"""What flowed between the steps of a recorded run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sirius_dspy.graph.chart import Flow, FlowChart, Node
from sirius_dspy.plain import readable
from sirius_dspy.trajectory import Step, Trajectory, canonical

_SHORTEST_QUOTE = 8
"""Characters from which a text counts as part of a longer one. A shorter text, such as `no` or `42`, is part of many
texts by chance, so it counts only as a whole value."""

_LONGEST_NOTE = 300
"""Maximum number of characters in a note of a chart."""


def data_flow(trajectory: Trajectory) -> FlowChart:
    """Chart what flowed between the steps of a run: a node per step, and a flow where outputs appear in later inputs.

    An output appears in an input if they are equal, or if its text is part of a text there (in lists and dicts, too).
    This shows copies, not causes: what a program rewords or counts in between leaves no trace, and a value that two
    earlier steps both wrote flows from both.

    Args:
        trajectory: Any recorded run, of an `AgentGraph` or not.
    """
    counts = Counter(step.predictor for step in trajectory.steps)
    nodes = tuple(_step_node(step, counts[step.predictor] > 1) for step in trajectory.steps)
    flows = [
        Flow(source, target, written if written == read else f"{written} -> {read}")
        for target, reader in enumerate(trajectory.steps)
        for source, writer in enumerate(trajectory.steps)
        if writer.ended < reader.started  # what ran at the same time cannot have been read
        for written, value in (writer.outputs or {}).items()
        for read, given in reader.inputs.items()
        if _appears(value, given)
    ]
    return FlowChart(nodes, tuple(flows))


def _step_node(step: Step, is_repeated: bool) -> Node:
    label = f"{step.predictor} #{step.occurrence + 1}" if is_repeated else step.predictor
    if step.failure is not None:
        return Node(label, "failed", _shorten(f"{step.failure.kind}: {step.failure.message}"))
    note = "\n".join(f"{name}: {value}" for name, value in readable(step.outputs or {}).items())
    return Node(label, step.source, _shorten(note))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_NOTE else text[:_LONGEST_NOTE] + "..."


def _appears(value: Any, given: Any) -> bool:
    if value in (None, "", [], {}):
        return False
    if canonical(value) == canonical(given):
        return True
    if isinstance(given, Mapping):
        return any(_appears(value, item) for item in given.values())
    if isinstance(given, list | tuple):
        return any(_appears(value, item) for item in given)
    if not isinstance(value, str) or not isinstance(given, str) or not value.strip():
        return False
    text = value.strip()
    return text == given.strip() or (len(text) >= _SHORTEST_QUOTE and text in given)
