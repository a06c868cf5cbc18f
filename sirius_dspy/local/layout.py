"""Where the tokens of a batch are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sirius_dspy.local.lora import TokenRow


@dataclass(frozen=True, slots=True)
class Layout:
    """First the tokens that all rows begin with, then each row's own ones, padded to one length.

    What the rows begin with is computed once: no token sees what follows it, so it is the same for all of them.
    """

    start: int
    """Position of the batch's first token among the tokens of all agents."""
    shared: int
    """Number of tokens that all rows begin with; none of them carries loss."""
    rows: int
    own: int
    """Number of further tokens of the longest row."""

    @property
    def span(self) -> slice:
        """All tokens of the batch."""
        return slice(self.start, self.start + self.shared + self.rows * self.own)


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one agent's step as flat lists."""

    layout: Layout
    ids: list[int]
    """Tokens; padding, which nothing sees, is 0."""
    positions: list[int]
    """Position of each token in its row."""
    sources: list[int]
    """Where, among the tokens of all agents, the outputs are that predict the targets."""
    targets: list[int]
    """The tokens of the completions."""
    factors: list[float]
    """Weight of each target's loss: its row's weight over the number of targets."""


def _count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with."""
    together = zip(*prompts, strict=False)  # up to the end of the shortest
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, together))


def build_batch(rows: Sequence[TokenRow], start: int) -> Batch:
    """Lay rows out so that the first token is number `start` of a pass."""
    shared = _count_shared([row.prompt[:-1] for row in rows])
    own = max(map(len, rows)) - shared
    layout = Layout(start, shared, len(rows), own)
    num_targets = sum(len(row.completion) for row in rows)
    batch = Batch(layout, list(rows[0].prompt[:shared]), list(range(shared)), [], [], [])
    for row in rows:
        first = start + len(batch.ids)
        tokens = [*row.prompt[shared:], *row.completion]
        batch.ids.extend([*tokens, *[0] * (own - len(tokens))])
        batch.positions.extend(range(shared, shared + own))
        last = first + len(row.prompt) - shared - 1  # the last token of the prompt predicts the first of the reply
        batch.sources.extend(range(last, last + len(row.completion)))
        batch.targets.extend(row.completion)
        batch.factors.extend([row.weight / num_targets] * len(row.completion))
    return batch
