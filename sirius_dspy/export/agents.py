"""The agents of a checkpoint as an export sees them: their weights, and what is known of their training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sirius_dspy.checkpoint import load_agent, verify
from sirius_dspy.checkpoint.manifest import Manifest
from sirius_dspy.errors import ExportError

if TYPE_CHECKING:
    from sirius_dspy.local import LocalLM
    from sirius_dspy.local.chat import Chat
    from sirius_dspy.local.weights import Weights

Format = Literal["peft", "gguf", "safetensors"]
EXPORTS: tuple[Format, ...] = get_args(Format)
"""All formats."""

_HUB = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Base model, by the start of its id, to its id on the Hugging Face hub."""


@dataclass(frozen=True)
class TrainedAgent:
    """One agent with local weights.

    Attributes:
        name: Name of the agent.
        lm: Its LM.
        manifest: The checkpoint's manifest.
        base_model: Id of the base model on the Hugging Face hub, if it is known.
    """

    name: str
    lm: LocalLM
    manifest: Manifest
    base_model: str | None = None

    @property
    def chat(self) -> Chat:
        """The tokenizer and chat template of the weights."""
        from sirius_dspy.local.chat import load_chat

        return load_chat(self.weights)

    @property
    def weights(self) -> Weights:
        """The weights of the LM."""
        from sirius_dspy.local.models import resolve

        return resolve(self.lm.model)

    @cached_property
    def training(self) -> dict[str, Any]:
        """What the training job wrote; empty if the agent has the weights of the base model."""
        record = self.lm.folder / "training.json"
        return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}

    @property
    def header(self) -> dict[str, Any]:
        """The numbers and names at the start of the GGUF file; empty for a model folder."""
        from sirius_dspy.local.gguf_header import read_header

        return dict(read_header(self.weights.path)) if self.weights.is_gguf else {}


def read_agents(source: str | Path, names: Sequence[str] | None, base_model: str | None) -> list[TrainedAgent]:
    """Load the agents of a checkpoint that are to be exported.

    Raises:
        CheckpointError: The checkpoint cannot be read, or an agent does not exist.
        ExportError: An agent has no local weights.
    """
    manifest = verify(source)
    return [_read(source, name, manifest, base_model) for name in (manifest.agents if names is None else names)]


def _read(source: str | Path, name: str, manifest: Manifest, base_model: str | None) -> TrainedAgent:
    from sirius_dspy.local import LocalLM

    lm = load_agent(source, name)
    if not isinstance(lm, LocalLM):
        raise ExportError(
            f"The agent {name!r} runs on {lm.model!r}, whose weights are not here. Only agents with a `LocalLM` can be "
            "exported; name those."
        )
    agent = TrainedAgent(name, lm, manifest, base_model)
    return replace(agent, base_model=base_model or _hub_id(agent))


def _hub_id(agent: TrainedAgent) -> str | None:
    """Return the base model's id on the hub if it is the embedded one, or was downloaded from there."""
    from sirius_dspy.local.models import find_hub_id

    base = str(agent.training.get("base", agent.lm.model))
    name = base.removeprefix("local/")
    return next((hub for start, hub in _HUB.items() if name.startswith(start)), None) or find_hub_id(base)


def check_gguf(agent: TrainedAgent) -> None:
    """Check that an agent's weights are a GGUF file, or can be converted into one.

    Raises:
        ExportError: They cannot.
    """
    from sirius_dspy.local.plain_decoder import find_gguf_obstacle

    problem = None if agent.weights.is_gguf else find_gguf_obstacle(agent.weights)
    if problem is not None:
        raise ExportError(
            f"The agent {agent.name!r} cannot be written as GGUF: {problem}. Export 'safetensors', which llama.cpp's "
            "`convert_hf_to_gguf.py` may convert, or 'peft'."
        )


def adapter_folder(agent: TrainedAgent) -> Path:
    """Return the folder of an agent's LoRA adapter.

    Raises:
        ExportError: The agent was not trained, or its adapter does not fit the base model.
    """
    folder = agent.lm.folder / "adapter"
    if not agent.training or not folder.is_dir():
        raise ExportError(
            f"The agent {agent.name!r} was not trained, so it has no adapter. Name the other agents, or export whole "
            "weights: 'gguf' or 'safetensors'."
        )
    if "+lora@" in agent.training["base"]:
        raise ExportError(
            f"The adapter of {agent.name!r} continues fine-tuned weights (`train_from='current'`), so it does not fit "
            "the base model. Export the whole weights: 'gguf' or 'safetensors'."
        )
    return folder
