"""Checks sets of examples before anything is paid for, identifies them, and reads answers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from sirius_dspy.errors import DatasetError, UnreadableValueError
from sirius_dspy.plain import from_plain, opaque_parts, readable
from sirius_dspy.trajectory import Trajectory, digest, example_key, to_plain


def check_examples(examples: Any, name: str) -> list[dspy.Example]:
    """Refuse a set that is empty or holds anything but examples with inputs.

    Args:
        examples: The set as the user passed it.
        name: Name of the set for the message, such as `trainset`.

    Raises:
        DatasetError: The message names the first bad example by its position.
    """
    if isinstance(examples, str | Mapping) or not isinstance(examples, Iterable):
        raise DatasetError(f"The {name} is {type(examples).__name__}, expected a list of `dspy.Example`.")
    checked = list(examples)
    if not checked:
        raise DatasetError(f"The {name} is empty. Pass at least one example, better fifty.")
    for position, example in enumerate(checked):
        if not isinstance(example, dspy.Example):
            raise DatasetError(f"{name}[{position}] is {type(example).__name__}, expected a `dspy.Example`.")
        # Without `with_inputs`, `Example.inputs` raises.
        if not getattr(example, "_input_keys", None) or not example.inputs().keys():
            raise DatasetError(
                f"{name}[{position}] has no inputs. Mark them: `dspy.Example(...).with_inputs('question')`."
            )
    return checked


def check_storable(examples: Iterable[dspy.Example], name: str) -> None:
    """Refuse values that would not read back from the library as they are.

    Raises:
        DatasetError: The message names the example by its position, the field, and the class of the value.
    """
    for position, example in enumerate(examples):
        _check_storable(example, f"{name}[{position}]")


def _check_storable(example: dspy.Example, where: str) -> None:
    try:
        plain = to_plain(example)
        for path, kind in opaque_parts(plain):
            raise DatasetError(
                f"{where} holds a value of the class {kind!r} in {path!r}, which would not read back equal. Use "
                "plain values, a dataclass, a pydantic model, or an identifier such as a path."
            )
        from_plain(plain)
    except UnreadableValueError as error:
        raise DatasetError(f"{where} cannot be stored: {error}") from error


def unique(examples: Iterable[dspy.Example]) -> dict[str, dspy.Example]:
    """Return the examples by content key, in their order; of equal ones, the first."""
    unique_examples: dict[str, dspy.Example] = {}
    for example in examples:
        unique_examples.setdefault(example_key(example), example)
    return unique_examples


def keys_digest(examples: Iterable[dspy.Example]) -> str:
    """Return the content hash of a set of examples, whatever their order."""
    return digest(sorted(example_key(example) for example in examples))


def answer_of(trajectory: Trajectory) -> Any:
    """Return the `answer` of a recorded run's prediction, if it has one."""
    prediction = readable(trajectory.prediction)
    return prediction.get("answer") if isinstance(prediction, Mapping) else None
