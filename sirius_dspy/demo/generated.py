"""Generated items in splits that never share a question, whatever the seeds and sizes of two runs.

A question belongs to one split for ever, by a hash of what makes it this question (its key). So no seed and no size can
bring a question of the test split into the training split of any other run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import dspy

from sirius_dspy.errors import DatasetError, MissingDependencyError

Split = Literal["train", "validation", "test"]

_SHARES: tuple[Split, ...] = ("train", "train", "validation", "test")
"""The hash of a question picks one of these: half of all questions are for training."""

_ITEMS_PER_SEED = 1_000_000
"""reasoning-gym makes item i of seed s from the number s + i, so seeds must be this far apart to share no item."""

_PATIENCE = 20_000
"""Items in a row without a new question of the split, after which a task with few questions is taken to have no more.
The one that is generated least often may be missed, which costs nothing but itself."""


def examples(
    task: str,
    settings: dict[str, Any],
    read: Callable[[dict[str, Any]], dspy.Example | None],
    split: Split,
    size: int,
    seed: int,
) -> list[dspy.Example]:
    """The first `size` questions of a split that reasoning-gym generates for a seed, each once.

    Equal arguments give equal items in every process, and a smaller size gives the first items of a larger one.

    Args:
        task: Name of the generator.
        settings: Of the generator.
        read: Turns an item into an example whose `dspy_key` is `key_of` its question, or into `None` to leave it out.
        split: `train`, `validation` or `test`.
        size: Number of questions.
        seed: From 0; other seeds give other items of the same kind.

    Raises:
        DatasetError: The split, the size or the seed cannot be served.
        MissingDependencyError: reasoning-gym is not installed.
    """
    if split not in _SHARES:
        raise DatasetError(f"Split {split!r}, expected 'train', 'validation' or 'test'.")
    if size < 1 or seed < 0:
        raise DatasetError(f"Size {size!r} and seed {seed!r}, expected a size from 1 and a seed from 0.")
    questions: dict[str, dspy.Example] = {}
    misses = 0
    for item in _generate(task, seed, settings):
        example = read(item)
        if example is None or split_of(example.dspy_key) != split or example.dspy_key in questions:
            misses += 1
        else:
            questions[example.dspy_key], misses = example, 0
        if len(questions) == size:
            return list(questions.values())
        if misses == _PATIENCE:
            break
    raise DatasetError(f"The split {split!r} has {len(questions)} questions, {size!r} were asked for: take fewer.")


def key_of(question: str) -> str:
    """Identify a question by the text that makes it this question."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def split_of(key: str) -> Split:
    """The split that a question belongs to for ever."""
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
