"""Trains the adapters of several agents in one pass over the base that they share.

Each agent keeps what training it alone would give it: its own batches, loss, schedule, gradient limit, optimizer and
early end. A pass holds one batch of every agent that has not ended, so the products with the frozen weights are larger
and fewer.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from sirius_dspy.errors import TrainingError
from sirius_dspy.local.adapter import Adapter
from sirius_dspy.local.decoder import Decoder
from sirius_dspy.local.layout import build_batch
from sirius_dspy.local.lora import STOP_WINDOW, LoraOptions, TokenRow

OnStep = Callable[[int, int, float], None]
"""Called with the step (from 1), the number of steps and the loss."""


class Trainable(Protocol):
    """An adapter, with its optimizer."""

    options: LoraOptions

    def step(self, learning_rate: float) -> None:
        """Apply the gradient, and clear it."""

    def clear_gradient(self) -> None:
        """Forget the gradient."""

    def save(self, folder: Path) -> None:
        """Write a folder that PEFT reads."""


AddGradients = Callable[[Sequence[Any], Sequence[Sequence[TokenRow]]], list[float]]


class LengthBatches:
    """Batches of rows of similar length, to reduce padding, in a new order every epoch.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Number of rows per batch.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of one epoch, as numbers of rows; an incomplete one comes last."""
        order = list(range(len(self.lengths)))
        self.random.shuffle(order)  # rows of equal length get different neighbors in every epoch
        order.sort(key=lambda row: self.lengths[row])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        incomplete = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        self.random.shuffle(batches)
        yield from [*batches, *incomplete]


class Learner:
    """One agent in training.

    Args:
        adapter: What is trained, with the settings of the agent.
        rows: What the agent learns. Only the ratios of their weights matter: they are scaled to a mean of 1.
        on_step: Called after every step.
        name: Names the agent in errors.
    """

    def __init__(self, adapter: Trainable, rows: Sequence[TokenRow], on_step: OnStep, name: str = "the agent") -> None:
        self.name = name
        mean = sum(row.weight for row in rows) / len(rows)
        self.rows = [dataclasses.replace(row, weight=row.weight / mean) for row in rows]
        self.adapter, self.options, self.on_step = adapter, adapter.options, on_step
        self.batches = LengthBatches([len(row) for row in rows], self.options.batch_size, self.options.seed)
        self.num_steps = len(self.batches) * self.options.epochs
        self.losses: list[float] = []
        self.num_tokens = 0
        self._epoch = iter(self.batches)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or the rows are memorized; see `LoraOptions.stop_loss`."""
        done, recent = len(self.losses), self.losses[-STOP_WINDOW:]
        is_memorized = len(recent) == STOP_WINDOW and sum(recent) / STOP_WINDOW < self.options.stop_loss
        return done == self.num_steps or (done >= len(self.batches) and is_memorized)

    @property
    def learning_rate(self) -> float:
        """Of the next step: it rises from zero and then falls to zero, both linearly."""
        done, warmup = len(self.losses), math.ceil(self.num_steps * self.options.warmup)
        if done < warmup:
            return self.options.learning_rate * done / warmup
        return self.options.learning_rate * (self.num_steps - done) / max(1, self.num_steps - warmup)

    def next_rows(self) -> list[TokenRow]:
        """Return the rows of the next step."""
        numbers = next(self._epoch, None)
        if numbers is None:
            self._epoch = iter(self.batches)
            numbers = next(self._epoch)
        rows = [self.rows[number] for number in numbers]
        self.num_tokens += sum(map(len, rows))
        return rows

    def finish_step(self, loss: float) -> None:
        """Apply the gradient of the step, and report its loss."""
        self.adapter.step(self.learning_rate)
        self.losses.append(loss)
        self.on_step(len(self.losses), self.num_steps, loss)


def add_gradients(decoder: Decoder, adapters: Sequence[Adapter], rows: Sequence[Sequence[TokenRow]]) -> list[float]:
    """Add the gradients of one batch of each agent.

    Args:
        decoder: The base.
        adapters: One per agent.
        rows: The batch of each agent.

    Returns:
        The loss of each agent, in nats per completion token.

    References:
        Supervised fine-tuning step of Algorithm 1, SiriuS (arXiv:2502.04780).
    """
    batches, start = [], 0
    for part in rows:
        batches.append(build_batch(part, start))
        start += len(batches[-1].ids)
    device = decoder.embedding.device
    ids, positions, sources, targets = (
        torch.tensor([value for batch in batches for value in getattr(batch, name)], device=device)
        for name in ("ids", "positions", "sources", "targets")
    )
    factors = torch.tensor([factor for batch in batches for factor in batch.factors], device=device)
    shares = [adapter.share(batch) for adapter, batch in zip(adapters, batches, strict=True)]
    hidden = decoder.hidden(ids, positions, shares)
    losses = decoder.token_losses(hidden[sources], targets) * factors
    losses.sum().backward()  # each weight belongs to one agent, on whose loss alone it depends
    return [float(part.sum()) for part in losses.detach().split([len(batch.targets) for batch in batches])]


def learn(learners: Sequence[Learner], add_gradients: AddGradients) -> None:
    """Train until all agents have finished.

    Args:
        learners: The agents.
        add_gradients: Adds the gradients of one batch of each of several adapters, and returns their losses.

    Raises:
        TrainingError: The loss of an agent is no longer a number.
    """
    while active := [learner for learner in learners if not learner.is_finished]:
        rows = [learner.next_rows() for learner in active]
        losses = add_gradients([learner.adapter for learner in active], rows)
        for learner, loss in zip(active, losses, strict=True):
            if not math.isfinite(loss):  # zero times it is no number either, so it would spoil the other agents as well
                raise TrainingError(
                    f"The loss of {learner.name!r} became {loss} in step {len(learner.losses) + 1} of "
                    f"{learner.num_steps}. Train with a lower `learning_rate` than {learner.options.learning_rate:g}."
                )
            learner.finish_step(loss)
