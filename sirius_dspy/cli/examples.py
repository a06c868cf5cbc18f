"""Reads examples from a file or from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.datasets import DataLoader

from sirius_dspy.errors import DatasetError


def read_examples(source: str, inputs: Sequence[str], split: str) -> list[dspy.Example]:
    """Read examples.

    Args:
        source: Path of a JSONL file with an object on each line, or the id of a dataset on the hub, `ID` or `ID:SPLIT`.
        inputs: Names of the input fields; all other fields are labels.
        split: Split of a dataset whose id names none.

    Raises:
        DatasetError: The file or dataset does not exist, a line is not a JSON object, or an example lacks an input.
    """
    if not inputs:
        raise DatasetError("No inputs are named. Pass `--inputs` with the input fields of the program.")
    rows = _rows(Path(source)) if source.endswith(".jsonl") else enumerate(_from_hub(source, split), start=1)
    return [_example(row, inputs, f"{source}, row {number}") for number, row in rows]


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The examples cannot be read: {error}. Expected a JSONL file in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{path}, row {number} is not JSON: {error}. Expected an object on each line."
            ) from error


def _from_hub(source: str, split: str) -> Iterable[dspy.Example]:
    name, _, own_split = source.partition(":")
    try:
        examples: Any = DataLoader().from_huggingface(name, split=own_split or split)
    except Exception as error:  # errors of the hub, the network and many readers
        raise DatasetError(
            f"The dataset {source!r} cannot be loaded: {error}. Expected the path of a .jsonl file, or ID:SPLIT of a "
            "dataset on the Hugging Face hub."
        ) from error
    return list(examples)


def _example(row: Any, inputs: Sequence[str], where: str) -> dspy.Example:
    if not isinstance(row, dict | dspy.Example):
        raise DatasetError(f"{where} is a {type(row).__name__}, expected an object of fields.")
    if missing := [name for name in inputs if name not in row]:
        raise DatasetError(f"{where} has no {missing}; its fields are {sorted(row.keys())}. Correct `--inputs`.")
    return dspy.Example(**dict(row.items())).with_inputs(*inputs)
