"""Trains adapters with PEFT: for architectures that `sirius_dspy.local.decoder` does not compute.

Each agent gets what it gets there: its own batches, loss, schedule and gradient limit. Only the passes are separate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sirius_dspy.local.adapter import MAX_NORM
from sirius_dspy.local.chat import copy_tokenizer
from sirius_dspy.local.lora import LoraOptions, TokenRow
from sirius_dspy.local.unquantized import read_folder


class PeftBase:
    """A frozen model, and the adapters of several agents.

    Args:
        model: A causal language model of Transformers.
        has_checkpoints: Whether to compute the activations of each layer again in the backward pass.
    """

    def __init__(self, model: Any, *, has_checkpoints: bool = False) -> None:
        self.device = model.device
        if has_checkpoints:
            _add_checkpoints(model)
        self._model = model
        self._count = 0

    def add_adapter(self, options: LoraOptions) -> PeftAdapter:
        """Add a new adapter of all linear layers but the head."""
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        name, self._count = f"agent{self._count}", self._count + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            if isinstance(self._model, PeftModel):
                self._model.add_adapter(name, config)
            else:
                self._model = get_peft_model(self._model, config, adapter_name=name)
        self._model.eval()  # the base model's own dropout stays off
        for path, module in self._model.named_modules():
            if ".lora_dropout" in path:
                module.train()
        return PeftAdapter(self._model, name, options)

    def add_gradients(self, adapters: Sequence[PeftAdapter], rows: Sequence[Sequence[TokenRow]]) -> list[float]:
        """Add the gradients of one batch of each adapter, and return the losses, in nats per completion token."""
        return [self._add_gradient(adapter, batch) for adapter, batch in zip(adapters, rows, strict=True)]

    def _add_gradient(self, adapter: PeftAdapter, rows: Sequence[TokenRow]) -> float:
        self._model.set_adapter(adapter.name)
        width = max(map(len, rows))
        ids = [[*row.prompt, *row.completion, *[row.prompt[0]] * (width - len(row))] for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        num_targets = sum(len(row.completion) for row in rows)
        given = {"input_ids": ids, "attention_mask": mask}
        inputs = {name: torch.tensor(value, device=self.device) for name, value in given.items()}
        logits = self._model(**inputs, use_cache=False).logits
        loss = torch.zeros((), device=self.device)
        for row, scores in zip(rows, logits, strict=True):
            predicting = scores[len(row.prompt) - 1 : len(row) - 1].float()
            targets = torch.tensor(row.completion, device=self.device)
            losses = torch.nn.functional.cross_entropy(predicting, targets, reduction="sum")
            loss = loss + losses * row.weight / num_targets
        loss.backward()
        return float(loss.detach())


def _add_checkpoints(model: Any) -> None:
    """Compute layers again in the backward pass. Transformers does it in training mode only, which turns dropout on."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


class PeftAdapter:
    """One adapter of a `PeftBase`, and the AdamW that trains it."""

    def __init__(self, model: PeftModel, name: str, options: LoraOptions) -> None:
        self.name, self.options = name, options
        self._model = model
        self._weights = [weight for path, weight in model.named_parameters() if f".{name}." in path]
        self._optimizer = torch.optim.AdamW(self._weights, weight_decay=options.weight_decay)

    def step(self, learning_rate: float) -> None:
        """Apply the gradient, whose norm is limited to `MAX_NORM`, and clear it."""
        torch.nn.utils.clip_grad_norm_(self._weights, MAX_NORM)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self.clear_gradient()

    def clear_gradient(self) -> None:
        """Forget the gradient."""
        self._optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write a folder of PEFT's."""
        folder.mkdir(parents=True)
        tensors = get_peft_model_state_dict(self._model, adapter_name=self.name)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = self._model.peft_config[self.name]
        config.inference_mode, config.target_modules = True, sorted(config.target_modules)
        config.save_pretrained(str(folder))


def write_merged_folder(base: Path, adapter: Path, target: Path) -> None:
    """Add an adapter to the weights of a folder, and write a folder with the sum and the base's tokenizer.

    Args:
        base: A model folder.
        adapter: A folder of PEFT's.
        target: An existing folder.
    """
    model = PeftModel.from_pretrained(read_folder(base, "auto"), str(adapter)).merge_and_unload()
    model.save_pretrained(str(target))
    copy_tokenizer(base, target)
