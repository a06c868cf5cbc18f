"""Which earlier steps wrote what a step reads."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sirius_dspy.plain import canonical, readable, to_plain
from sirius_dspy.repair.case import Case
from sirius_dspy.repair.leak import leaves, mentions_gold


class Sources:
    """The earlier steps from which the inputs of the steps of a run are.

    A step wrote an input, or a text in it, if that is one of its outputs. A text that no step wrote, and that the
    example does not have, was made by the program: it is from all steps of which it holds an output.

    Args:
        case: The run.
    """

    def __init__(self, case: Case) -> None:
        self._steps = case.failed.steps
        self._given = [text for text in leaves(readable(to_plain(case.example.inputs()))) if isinstance(text, str)]
        self._writers: defaultdict[str, list[int]] = defaultdict(list)
        for number, step in enumerate(self._steps):
            for value in (step.outputs or {}).values():
                self._writers[canonical(value)].append(number)

    def find(self, position: int) -> set[int]:
        """Return the positions of the earlier steps that wrote what a step reads."""
        return {source for value in self._steps[position].inputs.values() for source in self._find(position, value)}

    def given_inputs(self, position: int) -> dict[str, Any]:
        """Return the inputs of a step that no other step wrote."""
        inputs = self._steps[position].inputs
        return {name: value for name, value in inputs.items() if not self._find(position, value)}

    def _find(self, position: int, value: Any) -> set[int]:
        if sources := self._find_writers(position, value):
            return sources
        texts = [text for text in leaves(readable(value)) if isinstance(text, str)]
        found = (self._find_writers(position, text) or self._find_quoted(position, text) for text in texts)
        return set().union(*found)

    def _find_writers(self, position: int, value: Any) -> set[int]:
        return {number for number in self._writers.get(canonical(value), ()) if number < position}

    def _find_quoted(self, position: int, text: str) -> set[int]:
        if any(text in given for given in self._given):
            return set()
        written = [
            (number, value) for number in range(position) for value in (self._steps[number].outputs or {}).values()
        ]
        return {number for number, value in written if mentions_gold(text, {"": value})}
