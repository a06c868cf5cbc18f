"""Lengths of generated stories, for all splits or by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sirius_dspy.errors import DatasetError

Lengths = int | Sequence[int] | Mapping[str, int | Sequence[int]]
"""A length, or several that occur equally often, or one of both for each split."""


def lengths_of(lengths: Lengths, split: str, name: str) -> tuple[int, ...]:
    """Return the lengths for a split.

    Raises:
        DatasetError: They are not integers from 1, or there are none for the split; the message has the setting's name.
    """
    chosen = lengths.get(split) if isinstance(lengths, Mapping) else lengths
    found = (chosen,) if isinstance(chosen, int) else tuple(chosen or ())
    if not found or not all(type(length) is int and length >= 1 for length in found):
        raise DatasetError(
            f"`{name}` is {lengths!r} for the split {split!r}, expected integers from 1, such as 5, (1, 2, 3) or "
            "{'train': (1, 2, 3), 'validation': 5, 'test': (5, 10)}."
        )
    return found
