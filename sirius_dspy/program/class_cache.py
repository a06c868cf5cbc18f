"""A cache of what is said of classes that lets the classes go."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

Said = TypeVar("Said")


def cached_by_class(function: Callable[[type], Said]) -> Callable[[type], Said]:
    """Call a function once for each class, as long as there is the class.

    An `lru_cache` would keep the classes: each program that is built defines signatures anew, of tens of kilobytes.
    """
    said: WeakKeyDictionary[type, Said] = WeakKeyDictionary()

    @functools.wraps(function)
    def of_class(cls: type) -> Said:
        if cls not in said:
            said[cls] = function(cls)
        return said[cls]

    return of_class
