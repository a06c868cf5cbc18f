"""Answers requests with a registered program; MLflow imports this by the name that a model's files give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from sirius_dspy.checkpoint import adapter_of, load
from sirius_dspy.checkpoint.naming import build_at
from sirius_dspy.errors import CheckpointError
from sirius_dspy.plain import readable
from sirius_dspy.running.parallel import parallel_map
from sirius_dspy.trajectory import to_plain


class ServedProgram:
    """A program behind `mlflow.pyfunc.load_model`, which leaves DSPy's settings in this process as they are.

    The program's code is imported: whoever serves a model of MLflow trusts who registered it. `sirius_dspy.load` does
    not need that trust.

    Args:
        folder: Of the checkpoint.
        program: The program's class, or a function that builds it, as `module:name`: `build` of `register`.

    Raises:
        CheckpointError: The checkpoint or the program cannot be loaded.
    """

    def __init__(self, folder: str, program: str | None) -> None:
        if program is None:
            raise CheckpointError(
                "This model was registered from a folder without its program's code, so it cannot be served. Register "
                "it with `build=`, or load it with `sirius_dspy.load(uri, program=...)`."
            )
        self.adapter = adapter_of(folder)
        with dspy.context(adapter=self.adapter):
            self.program = load(folder, program=build_at(program), configure=False)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The output fields for each row of input fields.

        Args:
            model_input: A DataFrame, a list of mappings, or one mapping of input fields to values.
            params: Not used; MLflow passes it.
        """
        rows = enumerate(_rows(model_input))
        with dspy.context(adapter=self.adapter, disable_history=True):
            answered = {number: answer for (number, _), answer in parallel_map(self._answer, rows)}
        return [answered[number] for number in sorted(answered)]

    def _answer(self, row: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
        prediction = readable(to_plain(self.program(**row[1])))
        return prediction if isinstance(prediction, dict) else {"prediction": prediction}


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedProgram:
    """What MLflow calls, with the folder of the checkpoint."""
    return ServedProgram(path, (model_config or {}).get("program"))


def _rows(model_input: Any) -> Iterable[Mapping[str, Any]]:
    if hasattr(model_input, "to_dict"):  # a DataFrame; pandas need not be imported to see that
        model_input = model_input.to_dict("records")
    rows = [model_input] if isinstance(model_input, Mapping) else model_input
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """The Python value of a NumPy one, as JSON would have had it."""
    return value.tolist() if hasattr(value, "tolist") else value
