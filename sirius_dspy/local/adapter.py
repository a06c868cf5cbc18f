"""The trainable weights of one agent, their optimizer, and the folder in which PEFT expects them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sirius_dspy.local.decoder import GROUPS, Decoder, Factors, Share
from sirius_dspy.local.layout import Batch
from sirius_dspy.local.lora import LoraOptions

MAX_NORM = 1.0
"""Gradients of a greater norm are scaled down to it."""


class Adapter:
    """Low-rank updates of all linear layers of a decoder, and the AdamW that trains them.

    All weights are in one float32 vector, so an optimizer step is a few operations, however many layers there are. The
    decoder computes with a copy in its own precision.

    The linear layers of a group share their input, so their narrow factors are stacked. Their wide factors are blocks
    of one matrix, whose rest stays zero. As in PEFT, the narrow factors are uniform at first and the wide ones zero.

    Args:
        decoder: What is adapted.
        options: Rank, scale, seed and the settings of AdamW.
    """

    def __init__(self, decoder: Decoder, options: LoraOptions) -> None:
        self.options = options
        self.sizes = [{group: base.sizes for group, base in block.linear.items()} for block in decoder.blocks]
        shapes = list(self._shapes(decoder))
        total, device = sum(map(math.prod, shapes)), decoder.embedding.device
        self.weights, self.gradient, self.trainable = (torch.zeros(total, device=device) for _ in range(3))
        self.weights.grad = self.gradient
        copy = torch.zeros(total, device=device, dtype=decoder.embedding.dtype)
        self._copy, self._copy_gradient = copy, torch.zeros_like(copy)
        leaves = _cut(self._copy, shapes)
        for leaf, gradient in zip(leaves, _cut(self._copy_gradient, shapes), strict=True):
            leaf.requires_grad_().grad = gradient  # so each backward pass adds to the one vector
        self.factors, self._masters = self._by_block(leaves), self._by_block(_cut(self.weights, shapes))
        self.generator = torch.Generator(device).manual_seed(options.seed)
        self._initialize(self._by_block(_cut(self.trainable, shapes)))
        self._optimizer = torch.optim.AdamW([self.weights], weight_decay=options.weight_decay, fused=True)

    def _shapes(self, decoder: Decoder) -> Iterator[tuple[int, int]]:
        """Yield the shapes of the narrow and the wide factor of each group of each block."""
        for block in decoder.blocks:
            for base in block.linear.values():
                ranks = self.options.rank * len(base.sizes)
                yield ranks, base.weight.shape[1]
                yield base.weight.shape[0], ranks

    def _by_block(self, tensors: Sequence[torch.Tensor]) -> list[dict[str, Factors]]:
        pairs = iter(zip(tensors[::2], tensors[1::2], strict=True))
        return [{group: next(pairs) for group in sizes} for sizes in self.sizes]

    def _initialize(self, trainable: Sequence[dict[str, Factors]]) -> None:
        for masters, masks in zip(self._masters, trainable, strict=True):
            for group, (narrow, _) in masters.items():
                bound = narrow.shape[1] ** -0.5
                narrow.uniform_(-bound, bound, generator=self.generator)
                masks[group][0].fill_(1.0)
        for sizes, masks in zip(self.sizes, trainable, strict=True):
            for group, outputs in sizes.items():
                for part in _blocks(masks[group][1], outputs, self.options.rank):
                    part.fill_(1.0)
        self.refresh()

    def refresh(self) -> None:
        """Copy the weights to where the decoder reads them."""
        self._copy.copy_(self.weights)  # neither records gradients: only the views of the copy are leaves

    def share(self, batch: Batch) -> Share:
        """Return the part of a pass that belongs to this adapter."""
        scale = self.options.alpha / self.options.rank
        return Share(batch, self.factors, scale, self.options.dropout, self.generator)

    def step(self, learning_rate: float) -> None:
        """Apply the gradient, whose norm is limited to `MAX_NORM`, and clear it."""
        torch.mul(self._copy_gradient, self.trainable, out=self.gradient)
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((MAX_NORM / (norm + 1e-6)).clamp_(max=1.0))
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self.refresh()
        self.clear_gradient()

    def clear_gradient(self) -> None:
        """Set the gradient to zero."""
        self._copy_gradient.zero_()

    def modules(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield name, narrow and wide factor of each linear layer, in float32."""
        rank = self.options.rank
        for number, (sizes, masters) in enumerate(zip(self.sizes, self._masters, strict=True)):
            for group, outputs in sizes.items():
                narrow, wide = masters[group]
                parts = zip(GROUPS[group], narrow.split(rank), _blocks(wide, outputs, rank), strict=True)
                for name, low, high in parts:
                    yield f"layers.{number}.{name}", low, high

    def save(self, folder: Path) -> None:
        """Write a folder that PEFT, vLLM and `merge` read."""
        folder.mkdir(parents=True)
        tensors = {}
        for name, narrow, wide in self.modules():
            for letter, factor in (("A", narrow), ("B", wide)):
                tensors[f"base_model.model.model.{name}.lora_{letter}.weight"] = factor.detach().cpu().contiguous()
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = {  # written without PEFT, whose import takes as long as the training of some dozen rows
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.options.rank,
            "lora_alpha": self.options.alpha,
            "lora_dropout": self.options.dropout,
            "target_modules": sorted({name.rpartition(".")[2] for names in GROUPS.values() for name in names}),
            "bias": "none",
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _cut(vector: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """View a vector as matrices, one after the other."""
    parts = vector.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _blocks(wide: torch.Tensor, outputs: Sequence[int], rank: int) -> list[torch.Tensor]:
    """The blocks on the diagonal of a wide factor, one for each linear layer."""
    rows = wide.split(list(outputs))
    return [part[:, number * rank : (number + 1) * rank] for number, part in enumerate(rows)]
