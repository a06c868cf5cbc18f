"""Holds the rows that a curator may keep, so that its memory grows with the examples and not with the runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from heapq import heappush, heappushpop
from typing import TYPE_CHECKING

from sirius_dspy.plain import DigestSet, text_digest

if TYPE_CHECKING:  # curators use pools
    from sirius_dspy.training.curate import Row

SPARE = 8
"""How many times the rows that the cap per example keeps are held. The other limits and the seed choose among them."""


@contextmanager
def open_pools(predictors: Iterable[str], most: int | None, seed: int) -> Iterator[dict[str, RowPool]]:
    """Open a pool for each predictor; see `RowPool`."""
    with ExitStack() as opened:
        yield {name: RowPool(most, seed, opened.enter_context(DigestSet())) for name in predictors}


class RowPool:
    """The different rows of one predictor, at most so many of each example, whatever the order they come in.

    Args:
        most: Rows that are held of an example; `None` for all.
        seed: Decides which ones those are, if there are more.
        left_out: Gets the ids of those that are not held.
    """

    def __init__(self, most: int | None, seed: int, left_out: DigestSet) -> None:
        self.rows: dict[str, Row] = {}
        """Id to row."""
        self._most = most
        self._seed = seed
        self._left_out = left_out
        self._turns: dict[str, list[tuple[int, str]]] = defaultdict(list)  # of an example; a heap, the next to go first

    def add(self, row: Row) -> bool:
        """Add a row; return whether an equal one was added before, of which the one of the least run is held."""
        id = row.id
        if id in self.rows:
            self.rows[id] = min(row, self.rows[id], key=lambda row: row.trajectory)  # whichever came first
            return True
        if id in self._left_out:
            return True
        self.rows[id] = row
        if self._most is not None:
            self._limit(row.example_key, id, self._most)
        return False

    @property
    def num_left_out(self) -> int:
        """The number of rows that were too many."""
        return len(self._left_out)

    def _limit(self, example: str, id: str, most: int) -> None:
        turns = self._turns[example]
        turn = (-int(text_digest(f"{self._seed} {id}"), 16), id)
        if len(turns) < most:
            heappush(turns, turn)
            return
        _, last = heappushpop(turns, turn)
        del self.rows[last]
        self._left_out.add(last)
