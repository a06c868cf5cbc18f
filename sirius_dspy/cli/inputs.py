"""Reads the inputs of a program from the command line."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.checkpoint.manifest import read_manifest
from sirius_dspy.errors import DatasetError

_READ_AS_JSON = re.compile(r"(typing\.|collections\.abc\.)?(int|float|bool|list|dict|tuple|set|Sequence|Mapping)\b")
"""Types whose values are not text. Inputs without a type are text."""


def read_declared_inputs(checkpoint: Path) -> Mapping[str, str] | None:
    """Map input names to type names, as the checkpoint declares them; `None` if its program accepts any inputs."""
    return read_manifest(checkpoint).inputs


def read_inputs(given: Sequence[str], declared: Mapping[str, str] | None) -> dict[str, Any]:
    """Read inputs from options, or from a JSON object on stdin if there are no options.

    Args:
        given: Texts such as `question=Who?`.
        declared: Input name to the name of its type.

    Raises:
        DatasetError: An input cannot be read.
    """
    if not given:
        return _from_stdin()
    inputs = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise DatasetError(f"`--input` is {text!r}, expected NAME=VALUE.{_explain_inputs(declared)}")
        inputs[name] = _read(name, value, (declared or {}).get(name, "str"))
    return inputs


def check_inputs(inputs: Mapping[str, Any], declared: Mapping[str, str] | None, program: dspy.Module) -> None:
    """Refuse missing and unknown inputs.

    Raises:
        DatasetError: An input is missing or unknown; the message lists the inputs of the program.
    """
    if declared is None:
        return
    missing = [name for name in declared if name not in inputs and name not in _optional(program)]
    unknown = [name for name in inputs if name not in declared]
    problems = [f"{what} {', '.join(names)}" for what, names in (("missing:", missing), ("unknown:", unknown)) if names]
    if problems:
        raise DatasetError(f"The inputs do not fit ({'; '.join(problems)}).{_explain_inputs(declared)}")


def _from_stdin() -> dict[str, Any]:
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    if not text.strip():
        return {}
    try:
        inputs = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"Stdin is not JSON: {error}. Expected an object of inputs.") from error
    if not isinstance(inputs, dict):
        raise DatasetError(f"Stdin holds the JSON value {text.strip()[:80]!r}, expected an object of inputs.")
    return inputs


def _read(name: str, value: str, kind: str) -> Any:
    if not _READ_AS_JSON.match(kind) or "str" in re.split(r"\W+", kind.partition("[")[0]):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DatasetError(f"The input {name!r} is {value!r}, expected {kind} as JSON, such as `{name}=3`.") from error


def _explain_inputs(declared: Mapping[str, str] | None) -> str:
    if not declared:
        return ""
    names = ", ".join(f"{name} ({kind})" for name, kind in declared.items())
    return f" The program's inputs are {names}. Pass each as `--input NAME=VALUE`, or a JSON object on stdin."


def _optional(program: dspy.Module) -> set[str]:
    """Return the inputs for which `forward` has a default."""
    forward = getattr(type(program), "forward", None)
    parameters = inspect.signature(forward).parameters.values() if forward is not None else ()
    return {item.name for item in parameters if item.default is not inspect.Parameter.empty}
