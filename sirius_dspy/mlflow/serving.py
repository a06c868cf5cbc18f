"""Answers requests with a registered program; MLflow imports this by the name that a model's files give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from sirius_dspy.checkpoint import adapter_of, load
from sirius_dspy.parallel import parallel
from sirius_dspy.plain import readable
from sirius_dspy.trajectory import to_plain


class ServedProgram:
    """A program behind `mlflow.pyfunc.load_model`, which leaves DSPy's settings in this process as they are.

    Args:
        folder: Of the checkpoint.
    """

    def __init__(self, folder: str) -> None:
        self.adapter = adapter_of(folder)
        with dspy.context(adapter=self.adapter):
            self.program = load(folder, configure=False)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The output fields for each row of input fields.

        Args:
            model_input: A DataFrame, a list of mappings, or one mapping of input fields to values.
            params: Not used; MLflow passes it.
        """
        rows = enumerate(_rows(model_input))
        with dspy.context(adapter=self.adapter, disable_history=True):
            answered = {number: answer for (number, _), answer in parallel(self._answer, rows)}
        return [answered[number] for number in sorted(answered)]

    def _answer(self, row: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
        prediction = readable(to_plain(self.program(**row[1])))
        return prediction if isinstance(prediction, dict) else {"prediction": prediction}


def _load_pyfunc(path: str) -> ServedProgram:
    """What MLflow calls, with the folder of the checkpoint."""
    return ServedProgram(path)


def _rows(model_input: Any) -> Iterable[Mapping[str, Any]]:
    if hasattr(model_input, "to_dict"):  # a DataFrame; pandas need not be imported to see that
        model_input = model_input.to_dict("records")
    rows = [model_input] if isinstance(model_input, Mapping) else model_input
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """The Python value of a NumPy one, as JSON would have had it."""
    return value.tolist() if hasattr(value, "tolist") else value
