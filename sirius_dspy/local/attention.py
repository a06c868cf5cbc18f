"""Causal attention over a batch whose rows share their first tokens."""

from __future__ import annotations

import torch

from sirius_dspy.local.layout import Layout

LONG = 384
"""From this many tokens per row, the fused kernel is used, which is slower on short rows but keeps no scores."""


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """Attend from each token of a batch to those before it in its row.

    Padding follows the tokens of its row, so no other token sees it.

    Args:
        query: `(tokens, heads, width)`, the tokens of this batch.
        key: `(tokens, key heads, width)`.
        value: Of the same shape as `key`.
        layout: How the tokens form rows.
        scale: Factor of the scores.

    Returns:
        `(tokens, heads * width)`.
    """
    shared = layout.shared
    own = [part[shared:].unflatten(0, (layout.rows, layout.own)).transpose(1, 2) for part in (query, key, value)]
    if not shared:
        return _attend(own[0], own[1], own[2], scale).flatten(0, 1)
    first = [part[:shared].transpose(0, 1).unsqueeze(0) for part in (query, key, value)]
    keys, values = (
        torch.cat([before.expand(layout.rows, -1, -1, -1), after], 2)
        for before, after in zip(first[1:], own[1:], strict=True)
    )
    outputs = _attend(first[0], first[1], first[2], scale), _attend(own[0], keys, values, scale)
    return torch.cat([output.flatten(0, 1) for output in outputs])


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend from the last tokens of `(rows, heads, tokens, width)`, and return `(rows, tokens, heads * width)`."""
    rows, heads, tokens, width = query.shape
    mask = _causal(tokens, key.shape[2], query)
    if key.shape[2] >= LONG:
        fused = torch.nn.functional.scaled_dot_product_attention
        mixed = fused(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)
    groups = heads // key.shape[1]  # queries that share a key go into one product
    grouped = query.unflatten(1, (-1, groups)).flatten(2, 3).flatten(0, 1)
    scores = torch.baddbmm(mask.repeat(groups, 1), grouped, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    mixed = torch.softmax(scores, -1) @ value.flatten(0, 1)
    return mixed.view(rows, heads, tokens, width).transpose(1, 2).flatten(2)


def _causal(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """Return 0 where a query may look and minus infinity elsewhere; the queries are the last of the keys."""
    barred = like.new_full((queries, keys), -torch.inf)
    return barred.triu_(keys - queries + 1)
