"""Where the work of a stage is done: in this process, or in others that an executor starts.

The caller keeps its threads, and with them its budgets, interrupts and progress. Each thread hands one item at a time
to a shipped function, and waits for what it returns; so no more items are under way than there are threads. Workers
write nothing down but the calls of runs that have not ended (see `sirius_dspy.running.journal`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

from sirius_dspy.running.patience import Patience

Item = TypeVar("Item")
Result = TypeVar("Result")


class Shipped(ABC, Generic[Item, Result]):
    """A function that runs wherever its workers are."""

    @abstractmethod
    def __call__(self, item: Item) -> Result:
        """Call the function and wait for its result; called from many threads at once.

        What LMs did meanwhile is told to the watch, the usage tracker and the journal of the caller's context.
        """

    def leave(self) -> None:
        """Say that all work is to end: what is under way goes on, but no retry waits."""


class Workers(ABC):
    """Where functions can be shipped to."""

    @abstractmethod
    def open(
        self, function: Callable[[Item], Result], patience: Patience
    ) -> AbstractContextManager[Shipped[Item, Result]]:
        """The context in which a function can be called.

        Args:
            function: It must not change what it holds: workers in other processes have copies.
            patience: Of its LM calls.
        """


class Executor(ABC):
    """Starts workers. An object holds settings only, so that several compiles can use it."""

    @abstractmethod
    def start(self) -> AbstractContextManager[Workers]:
        """The context in which the workers live."""

    def check(self) -> None:
        """Refuse settings of the wrong kind.

        Raises:
            SettingsError: The message names the setting.
        """

    def check_parts(self, parts: Mapping[str, Any], lms: Iterable[Any]) -> None:
        """Refuse what cannot be shipped, before anything is paid for.

        Args:
            parts: What will be shipped, by the names that a user knows.
            lms: Those that will be asked.

        Raises:
            SettingsError: The message names the part.
        """


class _Here(Shipped[Item, Result]):
    """A function that runs in the thread that calls it."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __call__(self, item: Item) -> Result:
        return self._function(item)


class _Threads(Workers):
    """The caller's own threads."""

    @contextmanager
    def open(self, function: Callable[[Item], Result], patience: Patience) -> Iterator[Shipped[Item, Result]]:
        """The function itself."""
        yield _Here(function)


THREADS: Workers = _Threads()
"""No other process: a function runs in the thread that calls it."""


@contextmanager
def started(executor: Executor | None) -> Iterator[Workers]:
    """The context in which the workers of an executor live; `None` stands for the caller's own threads."""
    if executor is None:
        yield THREADS
        return
    with executor.start() as workers:
        yield workers
