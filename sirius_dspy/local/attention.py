"""Causal attention over batches whose rows share their first tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sirius_dspy.local.layout import Batch

LONG = 384
"""From this many tokens in the longest row, each agent's rows are attended to separately, without padding them to those
of another agent, by the fused kernel, which is slower on short rows but keeps no scores."""


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of an attention layer."""

    queries: int
    keys: int
    """Number of heads of keys and of values; each serves as many query heads."""
    width: int
    scale: float
    """Factor of the scores."""


@dataclass(frozen=True, slots=True)
class Group:
    """Stretches of tokens whose attention is computed at once, padded to one length."""

    lookers: torch.Tensor
    """`(stretches, lookers)`, int64: the numbers of the tokens that look."""
    seen: torch.Tensor
    """`(stretches, seen)`, int64: the numbers of the tokens at which they look, those before the lookers first."""
    bias: torch.Tensor
    """Of the shape of the scores, to which it is added: 0 where a token may look, and minus infinity elsewhere."""

    @property
    def is_long(self) -> bool:
        """Whether the fused kernel attends."""
        return self.seen.shape[1] >= LONG

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: Heads) -> torch.Tensor:
        """Return `(stretches * lookers, heads * width)`; see `Sight.attend`."""
        queries = _take(query, self.lookers, heads)  # (stretches, lookers, heads, width)
        keys, values = (_take(part, self.seen, heads).transpose(1, 2) for part in (key, value))
        if self.is_long:
            fused = torch.nn.functional.scaled_dot_product_attention
            mixed = fused(queries.transpose(1, 2), keys, values, self.bias, scale=heads.scale, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2).flatten(0, 1)
        grouped = queries.unflatten(2, (heads.keys, -1)).permute(0, 2, 3, 1, 4)  # queries of one key side by side
        stacked = grouped.flatten(2, 3).flatten(0, 1)
        scores = torch.baddbmm(self.bias, stacked, keys.flatten(0, 1).transpose(1, 2), alpha=heads.scale)
        mixed = torch.softmax(scores, -1) @ values.flatten(0, 1)
        return mixed.view(grouped.shape).permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Sight:
    """Which tokens of a pass look at which."""

    groups: Sequence[Group]
    places: torch.Tensor
    """Where the output of each token is among those of all groups."""

    @classmethod
    def build(cls, batches: Sequence[Batch], heads: Heads, like: torch.Tensor) -> Sight:
        """Let each token look at itself and those before it in its row.

        Args:
            batches: One per agent.
            heads: The heads of the layers.
            like: Tensor with the device and the precision of the scores.
        """
        is_long = max(len(batch.first) + len(own) for batch in batches for own in batch.own) >= LONG
        sets = [[batch] for batch in batches] if is_long else [batches]
        parts = [part for some in sets for part in _stretches(some)]
        places = torch.empty(sum(len(batch.ids) for batch in batches), dtype=torch.int64)
        for token, place in _number(parts):
            places[token] = place
        return cls([_build_group(part, heads, like) for part in parts], places.to(like.device))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: Heads) -> torch.Tensor:
        """Attend from each token.

        Args:
            query: `(tokens, heads, width)`, the tokens of all agents.
            key: `(tokens, key heads, width)`.
            value: Of the same shape as `key`.
            heads: The heads of the layer.

        Returns:
            `(tokens, heads * width)`.
        """
        outputs = [group.attend(query, key, value, heads) for group in self.groups]
        return torch.cat(outputs).index_select(0, self.places)


Stretch = tuple[range, range]
"""The tokens that look, and those before them in their row."""


def _stretches(batches: Sequence[Batch]) -> Iterator[list[Stretch]]:
    """Yield what the rows begin with, if there is any, and the rest of the rows."""
    if starts := [(batch.first, range(0)) for batch in batches if batch.first]:
        yield starts
    yield [(own, batch.first) for batch in batches for own in batch.own]


def _number(parts: Sequence[Sequence[Stretch]]) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield, for each stretch, its tokens and where the groups put their outputs."""
    offset = 0
    for part in parts:
        longest = max(len(own) for own, _ in part)
        for own, _ in part:
            yield slice(own.start, own.stop), torch.arange(offset, offset + len(own))
            offset += longest


def _build_group(part: Sequence[Stretch], heads: Heads, like: torch.Tensor) -> Group:
    lookers = _pad([[*own] for own, _ in part], like.device)
    seen = _pad([[*before, *own] for own, before in part], like.device)
    counts = torch.tensor([len(before) for _, before in part], device=like.device).view(-1, 1, 1)
    reach = counts + torch.arange(lookers.shape[1], device=like.device)[:, None]
    barred = torch.arange(seen.shape[1], device=like.device) > reach  # padding comes last, and its outputs are not read
    bias = like.new_zeros(barred.shape).masked_fill_(barred, -torch.inf).unsqueeze(1)
    if seen.shape[1] < LONG:
        bias = bias.repeat(1, heads.keys, heads.queries // heads.keys, 1).flatten(0, 1)
    return Group(lookers, seen, bias)


def _pad(lists: Sequence[list[int]], device: torch.device) -> torch.Tensor:
    longest = max(map(len, lists))
    return torch.tensor([[*numbers, *[numbers[0]] * (longest - len(numbers))] for numbers in lists], device=device)


def _take(values: torch.Tensor, tokens: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Gather `(stretches, tokens, heads, width)`."""
    return values.flatten(1).index_select(0, tokens.flatten()).view(*tokens.shape, -1, heads.width)
