"""Sets of examples: what is checked about them before anything is paid for, and what identifies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dspy

from sirius_dspy.errors import DatasetError, UnreadableValueError
from sirius_dspy.plain import from_plain, opaque_parts
from sirius_dspy.trajectory import digest, example_key, to_plain


def check_examples(examples: Any, name: str) -> list[dspy.Example]:
    """Refuse sets that are empty or hold anything but examples with inputs.

    Args:
        examples: What the user passed.
        name: `trainset` or `valset`, for the message.

    Raises:
        DatasetError: The message names the first bad example by its position.
    """
    if isinstance(examples, str | Mapping) or not isinstance(examples, Iterable):
        raise DatasetError(f"The {name} is {type(examples).__name__}, expected a list of `dspy.Example`.")
    found = list(examples)
    if not found:
        raise DatasetError(f"The {name} is empty. SiriuS learns from examples: pass at least one, better fifty.")
    for position, example in enumerate(found):
        if not isinstance(example, dspy.Example):
            raise DatasetError(f"{name}[{position}] is {type(example).__name__}, expected a `dspy.Example`.")
        # Without `with_inputs`, `Example.inputs` raises.
        if not getattr(example, "_input_keys", None) or not example.inputs().keys():
            raise DatasetError(
                f"{name}[{position}] has no inputs. Mark them: `dspy.Example(...).with_inputs('question')`."
            )
    return found


def check_storable(examples: Iterable[dspy.Example], name: str) -> None:
    """Refuse values that would not come back from the library as they are.

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
                f"{where} holds a value of the class {kind!r} in {path!r}, which cannot be stored so that it comes "
                "back the same. Use plain values, a dataclass, a pydantic model, or what identifies it, such as a path."
            )
        from_plain(plain)
    except UnreadableValueError as error:
        raise DatasetError(f"{where} cannot be stored: {error}") from error


def unique(examples: Iterable[dspy.Example]) -> dict[str, dspy.Example]:
    """Examples by content key, in their order; equal ones collapse."""
    found: dict[str, dspy.Example] = {}
    for example in examples:
        found.setdefault(example_key(example), example)
    return found


def keys_digest(examples: Iterable[dspy.Example]) -> str:
    """Content hash of a set of examples, whatever their order."""
    return digest(sorted(example_key(example) for example in examples))
