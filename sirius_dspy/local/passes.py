"""Splits the rows of a training step into passes that fit into the device's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from sirius_dspy.errors import TrainingError
from sirius_dspy.local.learning import AddGradients, Trainable
from sirius_dspy.local.lora import TokenRow
from sirius_dspy.local.memory import free_device_memory, is_out_of_memory

Step = Sequence[Sequence[TokenRow]]
"""The rows of each agent."""


class FittingPasses:
    """Adds the gradients of a step, in one pass if it fits into the memory.

    When the memory is full, the step starts again with half of the rows in a pass, and later steps do the same. The
    gradients of the passes add up to that of the step, so the weights become what they would be in one pass.

    Args:
        add_gradients: Adds the gradients of one pass.
        tell: Called with a message when passes become smaller.
        device: Named in messages.
    """

    def __init__(self, add_gradients: AddGradients, tell: Callable[[str], None], device: str) -> None:
        self.max_rows: int | None = None
        """Maximum number of rows in a pass; `None` if every step fitted so far."""
        self._add, self._tell, self._device = add_gradients, tell, device

    def __call__(self, adapters: Sequence[Trainable], rows: Step) -> list[float]:
        """Add the gradients of one batch of each agent, whose gradients are zero, and return the losses.

        Raises:
            TrainingError: A single row does not fit into the memory.
        """
        total = sum(map(len, rows))
        first = size = min(total, self.max_rows or total)
        while (losses := self._try(adapters, rows, size)) is None:
            for adapter in adapters:
                adapter.clear_gradient()  # a pass may have added a part of it
            free_device_memory()
            if size == 1:
                raise TrainingError(self._complain(rows))
            size //= 2
        if size < first:
            self.max_rows = size
            self._tell(
                f"{first} training rows at a time do not fit into the memory of {self._device}, so each pass has at "
                f"most {size} from now on. The gradients add up to the same; only the speed changes."
            )
        return losses

    def _try(self, adapters: Sequence[Trainable], rows: Step, size: int) -> list[float] | None:
        """Return the losses, or `None` if the memory is full."""
        losses = [0.0] * len(rows)
        try:
            for part in split_step(rows, size):
                agents = [agent for agent, own in enumerate(part) if own]
                added = self._add([adapters[agent] for agent in agents], [part[agent] for agent in agents])
                for agent, loss in zip(agents, added, strict=True):
                    losses[agent] += loss
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return losses

    def _complain(self, rows: Step) -> str:
        longest = max(len(row) for part in rows for row in part)
        return (
            f"A single training row (the longest of this step has {longest} tokens) does not fit into the memory of "
            f"{self._device}. Set `gradient_checkpointing=True`, lower `max_length`, use `qlora`, or end what else "
            "uses the device."
        )


def split_step(rows: Step, size: int) -> Iterator[list[list[TokenRow]]]:
    """Yield the rows of each agent in each pass, weighted so that the losses of the passes add up to that of the step.

    The loss of an agent is a mean over its completion tokens, so a pass counts by its share of them.
    """
    counts = [sum(len(row.completion) for row in part) for part in rows]
    flat = [(agent, row) for agent, part in enumerate(rows) for row in part]
    for start in range(0, len(flat), size):
        parts: list[list[TokenRow]] = [[] for _ in rows]
        for agent, row in flat[start : start + size]:
            parts[agent].append(row)
        yield [_weigh(part, count) for part, count in zip(parts, counts, strict=True)]


def _weigh(rows: Sequence[TokenRow], count: int) -> list[TokenRow]:
    share = sum(len(row.completion) for row in rows) / count
    return [dataclasses.replace(row, weight=row.weight * share) for row in rows]
