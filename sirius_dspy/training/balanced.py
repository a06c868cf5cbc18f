"""A curator that keeps an agent from learning to give the most frequent answer always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median_low

import dspy
from dspy.utils.exceptions import AdapterParseError

from sirius_dspy import checks
from sirius_dspy.program import predictor_names, signature_of
from sirius_dspy.running.native import tool_calls_field
from sirius_dspy.training.caps import cap_groups
from sirius_dspy.training.curate import Curator, Row


@dataclass(frozen=True)
class BalancedCurator(Curator):
    """A `Curator` that caps the rows with a frequent label at the number of the others.

    It counts the rows of each predictor with the output field `label` by that field's value, and keeps no more rows of
    a value than the median value has: of two values equally many, of three the most frequent as many as the second.
    Where all rows have one value, the predictor gets none, since it would learn to say nothing else. The balance comes
    after the caps per run and example, and before `max_rows`.

    Attributes:
        label: Output field with the few values to balance; other predictors keep their rows.
    """

    label: str = "answer"

    def check(self) -> None:
        """See `Curator.check`."""
        super().check()
        checks.check(type(self).__name__, vars(self), {"label": checks.TEXT})

    def value_of(self, text: str) -> Hashable:
        """Return the value that a reply stands for; override it where several texts mean the same.

        Args:
            text: The field, as text. Here letter case and spaces around it do not count.
        """
        return text.strip().casefold()

    def balance(self, program: dspy.Module, rows: Sequence[Row]) -> Sequence[Row]:
        """See `Curator.balance`."""
        if not rows or self.label not in signature_of(predictor_names(program)[rows[0].predictor]).output_fields:
            return rows
        values = {row.id: self._value(program, row) for row in rows}
        counts = Counter(values.values())
        most = median_low(counts.values()) if len(counts) > 1 else 0
        return cap_groups(rows, most, lambda row: values[row.id])

    def _value(self, program: dspy.Module, row: Row) -> Hashable:
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        signature = signature_of(predictor_names(program)[row.predictor])
        if row.tools and (field := tool_calls_field(signature)):
            signature = signature.delete(field)
        try:
            outputs = adapter.parse(signature, row.messages[-1]["content"] or "")
        except AdapterParseError:  # tool calls in place of the field
            return None
        return self.value_of(str(outputs[self.label]))
