"""Where the tokens of a batch are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from sirius_dspy.local.lora import TokenRow


@dataclass(slots=True)
class Batch:
    """The rows of one agent's step as flat lists: first the tokens that all rows begin with, then each row's own ones.

    What the rows begin with is computed once: no token sees what follows it, so it is the same for all of them.
    """

    first: range
    """Numbers, among the tokens of all agents, of those that all rows begin with; none of them carries loss."""
    own: list[range] = field(default_factory=list)
    """Numbers of each row's further tokens."""
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Position of each token in its row."""
    sources: list[int] = field(default_factory=list)
    """Numbers of the tokens whose outputs predict the targets."""
    targets: list[int] = field(default_factory=list)
    """The tokens of the completions."""
    factors: list[float] = field(default_factory=list)
    """Weight of each target's loss: its row's weight over the number of targets."""

    @property
    def span(self) -> slice:
        """All tokens of the batch."""
        return slice(self.first.start, self.first.start + len(self.ids))


def _count_shared(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with."""
    together = zip(*prompts, strict=False)  # up to the end of the shortest
    return sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, together))


def build_batch(rows: Sequence[TokenRow], start: int) -> Batch:
    """Lay rows out so that the first token is number `start` of a pass."""
    shared = _count_shared([row.prompt[:-1] for row in rows])
    num_targets = sum(len(row.completion) for row in rows)
    batch = Batch(range(start, start + shared), ids=list(rows[0].prompt[:shared]), positions=list(range(shared)))
    for row in rows:
        first = start + len(batch.ids)
        batch.own.append(range(first, first + len(row) - shared))
        batch.ids.extend([*row.prompt[shared:], *row.completion])
        batch.positions.extend(range(shared, len(row)))
        last = first + len(row.prompt) - shared - 1  # the last token of the prompt predicts the first of the reply
        batch.sources.extend(range(last, last + len(row.completion)))
        batch.targets.extend(row.completion)
        batch.factors.extend([row.weight / num_targets] * len(row.completion))
    return batch
