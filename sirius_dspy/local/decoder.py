"""The forward pass of a Llama or Qwen decoder that the adapters of several agents share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from sirius_dspy.errors import TrainingError
from sirius_dspy.local.attention import Heads, Sight
from sirius_dspy.local.layout import Batch
from sirius_dspy.local.low_rank import AdaptedLinear, RMSNorm, Rotation, SwiGLU
from sirius_dspy.local.plain_decoder import find_variant

GROUPS = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The linear layers of a block; those with the same input are computed in one product."""

Factors = tuple[torch.Tensor, torch.Tensor]
"""`narrow` and `wide` of one group of one adapter; see `AdaptedLinear`."""


@dataclass(frozen=True, slots=True)
class Linear:
    """The frozen linear layers of a group, stacked."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    sizes: tuple[int, ...]
    """Number of outputs of each layer."""

    @classmethod
    def stack(cls, layers: Sequence[torch.nn.Linear]) -> Linear:
        """Stack the outputs of layers that have the same input."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([bias.detach() for bias in biases]) if biases else None
        return cls(weight, bias, tuple(layer.out_features for layer in layers))


@dataclass(frozen=True, slots=True)
class Share:
    """One agent's part of a pass."""

    batch: Batch
    factors: Sequence[dict[str, Factors]]
    """For each block, group to factors."""
    scale: float
    """`alpha / rank`."""
    dropout: float
    generator: torch.Generator
    """Draws what is dropped."""

    def kept(self, like: torch.Tensor) -> torch.Tensor:
        """Draw which of the inputs of an update are kept, as factors."""
        if not self.dropout:
            return torch.ones_like(like)
        kept = torch.rand(like.shape, generator=self.generator, device=like.device) >= self.dropout
        return kept.to(like.dtype).div_(1 - self.dropout)


@dataclass(frozen=True, slots=True)
class Pass:
    """What all layers of a pass need."""

    shares: Sequence[Share]
    """The agents, in the order of their tokens."""
    rotation: Factors
    sight: Sight
    scales: dict[str, torch.Tensor]
    """For each group, `(tokens, ranks of all agents)`: an agent's scale for its own tokens and ranks, 0 elsewhere."""

    def kept(self, values: torch.Tensor) -> torch.Tensor | None:
        """Draw which of the inputs of the updates are kept, as factors; `None` for all."""
        if not any(share.dropout for share in self.shares):
            return None
        return torch.cat([share.kept(values[share.batch.span]) for share in self.shares])


class Block:
    """One layer of the decoder."""

    def __init__(self, layer: Any) -> None:
        self.linear = {
            group: Linear.stack([layer.get_submodule(name) for name in names]) for group, names in GROUPS.items()
        }
        self.norms = [
            (norm.weight.detach(), norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self.head_norms = [
            (norm.weight.detach(), norm.variance_epsilon)
            for name in ("q_norm", "k_norm")
            if (norm := getattr(layer.self_attn, name, None)) is not None
        ]
        width = layer.self_attn.head_dim
        queries, keys, _ = (size // width for size in self.linear["attention"].sizes)
        self.heads = Heads(queries, keys, width, layer.self_attn.scaling)

    def __call__(self, x: torch.Tensor, number: int, given: Pass) -> torch.Tensor:
        """Map `(tokens, width)` to the next layer's input."""

        def linear(group: str, values: torch.Tensor) -> torch.Tensor:
            base, scales = self.linear[group], given.scales[group]
            factors = [factor for share in given.shares for factor in share.factors[number][group]]
            return AdaptedLinear.apply(values, base.weight, base.bias, scales, given.kept(values), *factors)

        projected = linear("attention", RMSNorm.apply(x, *self.norms[0]))
        x = x + linear("output", self._attend(projected, given))
        both = linear("gate_up", RMSNorm.apply(x, *self.norms[1]))
        return x + linear("down", SwiGLU.apply(both))

    def _attend(self, projected: torch.Tensor, given: Pass) -> torch.Tensor:
        """Attention within each row, from `(tokens, all heads)` of queries, keys and values."""
        sizes = self.linear["attention"].sizes
        query, key, value = (part.unflatten(-1, (-1, self.heads.width)) for part in projected.split(sizes, -1))
        if self.head_norms:
            query, key = RMSNorm.apply(query, *self.head_norms[0]), RMSNorm.apply(key, *self.head_norms[1])
        query, key = Rotation.apply(query, *given.rotation), Rotation.apply(key, *given.rotation)
        return given.sight.attend(query, key, value, self.heads)


class Decoder:
    """A frozen decoder, prepared for training adapters.

    Args:
        model: A causal language model of Transformers. Its layers are taken apart, so it cannot be used afterwards.
        has_checkpoints: Whether to keep the input of each layer only, and to compute the rest again in the backward
            pass: less memory, and about a third more operations.

    Raises:
        TrainingError: The model has another architecture, or a variant that is not computed here.
    """

    def __init__(self, model: Any, *, has_checkpoints: bool = False) -> None:
        _check(model.config)
        self._run = _run_with_checkpoint if has_checkpoints else _run
        body = model.model
        self.embedding = body.embed_tokens.weight.detach()
        self.head = model.lm_head.weight.detach()
        self.norm = (body.norm.weight.detach(), body.norm.variance_epsilon)
        self.rotary = body.rotary_emb
        self.blocks = []
        for number, layer in enumerate(body.layers):
            self.blocks.append(Block(layer))
            body.layers[number] = torch.nn.Identity()  # free the layers that have been stacked

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor, shares: Sequence[Share]) -> torch.Tensor:
        """Compute the last layer's output.

        Args:
            ids: `(tokens,)`, int64; the tokens of all agents, see `Batch`.
            positions: `(tokens,)`, int64; the position of each token in its row.
            shares: The agents, in the order of their tokens.

        Returns:
            `(tokens, width)`, before the last norm.
        """
        x = self.embedding[ids]
        cos, sin = self.rotary(x, positions.unsqueeze(0))
        rotation = cos.transpose(0, 1), sin.transpose(0, 1)
        sight = Sight.build([share.batch for share in shares], self.blocks[0].heads, x)
        given = Pass(shares, rotation, sight, {group: _scales(shares, group, x) for group in GROUPS})
        for number, block in enumerate(self.blocks):
            x = self._run(block, x, number, given)
        return x

    def token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each target, `(n,)`, in nats, from the outputs before it, `(n, width)`."""
        logits = torch.nn.functional.linear(RMSNorm.apply(hidden, *self.norm), self.head)
        precise = torch.promote_types(logits.dtype, torch.float32)
        return torch.nn.functional.cross_entropy(logits.to(precise), targets, reduction="none")


def _run(block: Block, x: torch.Tensor, number: int, given: Pass) -> torch.Tensor:
    return block(x, number, given)


def _run_with_checkpoint(block: Block, x: torch.Tensor, number: int, given: Pass) -> torch.Tensor:
    contexts = partial(_contexts, [share.generator for share in given.shares])
    result: torch.Tensor = checkpoint(block, x, number, given, use_reentrant=False, context_fn=contexts)
    return result


def _contexts(
    generators: Sequence[torch.Generator],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a layer's two computations, in which it must drop the same inputs."""
    return nullcontext(), _again(generators, [generator.get_state() for generator in generators])


@contextmanager
def _again(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> Iterator[None]:
    """Draw from earlier states, and go on afterwards as if nothing had been drawn."""
    present = [generator.get_state() for generator in generators]
    _set_states(generators, states)
    try:
        yield
    finally:
        _set_states(generators, present)


def _set_states(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _scales(shares: Sequence[Share], group: str, like: torch.Tensor) -> torch.Tensor:
    ranks = [len(share.factors[0][group][0]) for share in shares]
    scales = like.new_zeros(len(like), sum(ranks))
    for share, rank, end in zip(shares, ranks, itertools.accumulate(ranks), strict=True):
        scales[share.batch.span, end - rank : end] = share.scale
    return scales


def _check(config: Any) -> None:
    variant = find_variant(config.to_dict())
    if variant is not None:
        raise TrainingError(f"Cannot train this model: {variant}.")
