"""The keys and values of a running batch whose rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Columns that are allocated ahead, so that all rows are copied once in as many tokens, and not at every token."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, `(rows, heads, tokens, width)`, to which new tokens are written in place."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []

    @classmethod
    def combine(cls, parts: Sequence[tuple[Any, torch.Tensor]], width: int) -> GrowingLayer:
        """Take some rows of several layers together.

        Args:
            parts: Layers, and the numbers of their rows to take.
            width: Number of the last columns to take. Rows of a narrower layer are padded on the left.
        """
        layer = cls()
        layer.lazy_initialization(parts[0][0].keys, parts[0][0].values)
        for name in ("keys", "values"):
            taken = [getattr(source, name)[rows, :, -width:] for source, rows in parts]
            layer._buffers.append(_align(taken, width))
        layer._show(width)
        return layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of new tokens, and return those of all tokens."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*new)
            self._buffers = [states[:, :, :0] for states in new]
        start = self.get_seq_length()
        self._buffers = [_write(*pair, start) for pair in zip(self._buffers, new, strict=True)]
        self._show(start + key_states.shape[-2])
        return self.keys, self.values

    def _show(self, width: int) -> None:
        self.keys, self.values = (buffer[:, :, :width] for buffer in self._buffers)


def _align(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Copy rows below each other, so that all end in the same column."""
    _, heads, _, size = parts[0].shape
    buffer = parts[0].new_zeros(sum(map(len, parts)), heads, width + ROOM, size)  # masked numbers must still be numbers
    start = 0
    for part in parts:
        buffer[start : start + len(part), :, width - part.shape[2] : width] = part
        start += len(part)
    return buffer


def _write(buffer: torch.Tensor, new: torch.Tensor, start: int) -> torch.Tensor:
    """Write new columns, into a copy with more room if there is none left."""
    end = start + new.shape[2]
    if end > buffer.shape[2]:
        bigger = new.new_empty(*new.shape[:2], end + ROOM, new.shape[3])
        bigger[:, :, :start] = buffer[:, :, :start]
        buffer = bigger
    buffer[:, :, start:end] = new
    return buffer


def new_cache() -> Any:
    """Return a cache without rows."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def combine(parts: Sequence[tuple[Any, Sequence[int]]], width: int) -> Any:
    """Take some rows of several caches together; see `GrowingLayer.combine`."""
    device = parts[0][0].layers[0].keys.device
    rows = [torch.tensor(numbers, device=device) for _, numbers in parts]
    layers = zip(*(cache.layers for cache, _ in parts), strict=True)
    return Cache(layers=[GrowingLayer.combine(list(zip(same, rows, strict=True)), width) for same in layers])


def can_combine(config: Any) -> bool:
    """Return whether a model remembers nothing but keys and values per token, so that rows can be padded and joined.

    Args:
        config: The configuration of the model. Layers with a sliding window keep all tokens here, with the old ones
            masked.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
