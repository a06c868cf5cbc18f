"""Generated items in splits that never share a question, for any seeds and sizes.

The hash of a question's key determines its split. So no seed or size can move a question of the test split into the
training split of another run.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import dspy

from sirius_dspy.errors import DatasetError, MissingDependencyError

Split = Literal["train", "validation", "test"]

_SHARES: tuple[Split, ...] = ("train", "train", "validation", "test")
"""The hash of a question selects one of these; half of all questions are for training."""

_ITEMS_PER_SEED = 1_000_000
"""reasoning-gym generates item i of seed s from the number s + i, so seeds must be this far apart to share no item."""

_PATIENCE = 20_000
"""After this many items in a row without a new question of the split, the task is assumed to have no more. A rare
question
may be missed, which does no harm."""


def examples(
    task: str,
    settings: dict[str, Any],
    read: Callable[[dict[str, Any]], dspy.Example | None],
    split: Split,
    size: int,
    seed: int,
) -> list[dspy.Example]:
    """Generate the first `size` questions of a split with a generator of reasoning-gym, without duplicates.

    Equal arguments give equal items in every process, and a smaller size gives the first items of a larger one.

    Args:
        task: Name of the generator in reasoning-gym.
        settings: Settings of the generator.
        read: Converts an item to an example whose `dspy_key` is `key_of` its question, or returns `None` to skip it.
        split: `train`, `validation` or `test`.
        size: Number of questions.
        seed: Seed from 0; other seeds give other items of the same kind.

    Raises:
        DatasetError: The split, the size or the seed is invalid, or there are too few questions.
        MissingDependencyError: reasoning-gym is not installed.
    """
    _check(split, size, seed)
    return _select((read(item) for item in _generate(task, seed, settings)), split, size)


def draw(
    make: Callable[[random.Random], dspy.Example | None], split: Split, size: int, seed: int
) -> list[dspy.Example]:
    """Generate the first `size` questions of a split with a generator of our own; the promise is that of `examples`.

    Args:
        make: Makes an example whose `dspy_key` is `key_of` its question, or returns `None` to skip it.
        split: `train`, `validation` or `test`.
        size: Number of questions.
        seed: Seed from 0; other seeds give other items of the same kind.

    Raises:
        DatasetError: The split, the size or the seed is invalid, or there are too few questions.
    """
    _check(split, size, seed)
    source = random.Random(seed)
    return _select((make(source) for _ in itertools.count()), split, size)


def _check(split: str, size: int, seed: int) -> None:
    if split not in _SHARES:
        raise DatasetError(f"The split is {split!r}, expected 'train', 'validation' or 'test'.")
    if size < 1 or seed < 0:
        raise DatasetError(f"The size is {size!r} and the seed {seed!r}, expected at least 1 and at least 0.")


def _select(items: Iterable[dspy.Example | None], split: Split, size: int) -> list[dspy.Example]:
    questions: dict[str, dspy.Example] = {}
    misses = 0
    for example in items:
        if example is None or split_of(example.dspy_key) != split or example.dspy_key in questions:
            misses += 1
        else:
            questions[example.dspy_key], misses = example, 0
        if len(questions) == size:
            return list(questions.values())
        if misses == _PATIENCE:
            break
    raise DatasetError(f"The split {split!r} has {len(questions)} questions, not {size!r}. Request fewer.")


def key_of(question: str) -> str:
    """Return the key of a question, a hash of the text that identifies it."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def split_of(key: str) -> Split:
    """Return the split of a question."""
    return _SHARES[int(key, 16) % len(_SHARES)]


def _generate(task: str, seed: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingDependencyError(
            f"The task `{task}` needs reasoning-gym. Run `pip install 'sirius-dspy[local]'`."
        ) from error
    items = reasoning_gym.create_dataset(task, seed=seed * _ITEMS_PER_SEED, size=_ITEMS_PER_SEED, **settings)
    return (items[index] for index in range(_ITEMS_PER_SEED))
