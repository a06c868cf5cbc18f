"""Models as PyTorch modules to train, and de-quantized ones as folders that Transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from sirius_dspy.errors import UnreadableModelError
from sirius_dspy.local.chat import no_progress_bars
from sirius_dspy.local.gguf_header import read_header, read_tensor_names
from sirius_dspy.local.plain_decoder import ARCHITECTURES
from sirius_dspy.local.weights import isolated


def read_folder(folder: Path, dtype: torch.dtype | str, **settings: Any) -> Any:
    """Load the model of a folder; code that it brings is never run.

    Args:
        folder: A folder with `config.json` and safetensors.
        dtype: Of the weights in memory; `auto` keeps that of the file.
        **settings: Passed on to Transformers.

    Raises:
        UnreadableModelError: Transformers does not know the architecture.
    """
    try:
        with no_progress_bars(), isolated(folder) as place:
            model = AutoModelForCausalLM.from_pretrained(
                str(place),
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                **settings,
            )
    except (OSError, ValueError) as error:
        raise UnreadableModelError(
            f"Transformers cannot read the model in {str(folder)!r}, without running code of the model: {error}"
        ) from error
    model.name_or_path = model.config._name_or_path = ""  # the temporary place, which PEFT would write into adapters
    return model


def read_gguf(gguf: Path, dtype: torch.dtype) -> Any:
    """Load de-quantized weights, and clear the mark because of which Transformers would refuse to train them."""
    with no_progress_bars(), isolated(gguf) as file:
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    for owner, mark in ((model.config, "quantization_config"), (model, "quantization_method"), (model, "hf_quantizer")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.is_quantized = False
    if rotation := _scaled_rotation(gguf, model.config):
        model.config.rope_parameters = rotation
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    return model


def _scaled_rotation(gguf: Path, config: Any) -> dict[str, Any] | None:
    """Return how the file scales the rotation of queries and keys, which Transformers' reader ignores, if it does.

    Factors of single frequencies, as Llama 3.1 has them, become the kind of scaling that takes such a list.

    Raises:
        UnreadableModelError: The kind of scaling is unknown.
    """
    header, architecture = read_header(gguf), config.model_type
    if architecture not in ARCHITECTURES:
        return None
    common = {"rope_theta": config.rope_parameters["rope_theta"]}
    context = config.max_position_embeddings
    if "rope_freqs.weight" in read_tensor_names(gguf):
        factors = _read_vector(gguf, "rope_freqs.weight")
        lists = {"short_factor": factors, "long_factor": factors}
        exact = {"attention_factor": 1.0, "original_max_position_embeddings": context}
        return {"rope_type": "longrope", **common, **lists, **exact}
    kind = header.get(f"{architecture}.rope.scaling.type", "none")
    scaling = {"rope_type": kind, **common, "factor": header.get(f"{architecture}.rope.scaling.factor", 1.0)}
    if kind in ("none", "linear"):
        return scaling if kind == "linear" else None
    if kind == "yarn":
        original = header.get(f"{architecture}.rope.scaling.original_context_length", context)
        return {**scaling, "original_max_position_embeddings": original}
    raise UnreadableModelError(f"{str(gguf)!r} scales its rotation by {kind!r}; expected 'linear' or 'yarn'.")


def _read_vector(gguf: Path, name: str) -> list[float]:
    from gguf import GGUFReader

    (tensor,) = (tensor for tensor in GGUFReader(gguf).tensors if tensor.name == name)
    return [float(value) for value in tensor.data]


def write_model(gguf: Path, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in bfloat16, which rounds less than the file's quantization.

    `save_pretrained` refuses a model that was loaded from GGUF, so the two files are written separately.
    """
    model = read_gguf(gguf, torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.to_json_file(str(folder / "config.json"), use_diff=True)
