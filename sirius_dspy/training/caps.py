"""Draws rows evenly, where a cap leaves some of them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def draw_evenly(items: Sequence[Item], number: int | None, group: Callable[[Item], Hashable]) -> list[Item]:
    """Return at most so many items, in their order: one of each group, then a second one of each, and so on.

    Args:
        items: In a random order; of a group, the first ones are drawn.
        number: How many are drawn; `None` for all.
        group: Returns what an item belongs to.
    """
    if number is None or number >= len(items):
        return list(items)
    seen: Counter[Hashable] = Counter()
    rounds: dict[int, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        seen[group(item)] += 1
        rounds[seen[group(item)]].append(position)
    in_turn = [position for turn in sorted(rounds) for position in rounds[turn]]
    return [items[position] for position in sorted(in_turn[:number])]


def cap_groups(items: Sequence[Item], most: int | None, group: Callable[[Item], Hashable]) -> list[Item]:
    """Return the items without those after the first `most` of each group; `None` for all."""
    seen: Counter[Hashable] = Counter()
    kept = []
    for item in items:
        seen[group(item)] += 1
        if most is None or seen[group(item)] <= most:
            kept.append(item)
    return kept
