"""Which models are plain Llama or Qwen decoders: only those are computed by OpenVINO's reader of GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sirius_dspy.local.gguf_header import read_header, read_tensor_names
from sirius_dspy.local.weights import Weights

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""As `general.architecture` of a GGUF file, and as `model_type` of a configuration."""


def find_obstacle(weights: Weights) -> str | None:
    """Return why OpenVINO cannot compute a model, or `None` if it can.

    Of the rotation of queries and keys, OpenVINO's reader knows the base frequency only. It ignores all scaling, which
    Llama 3.1 and later have, so their text would be wrong.
    """
    return _in_gguf(weights) if weights.is_gguf else "model folders are not converted"


def _in_gguf(weights: Weights) -> str | None:
    header = read_header(weights.path)
    architecture = header.get("general.architecture")
    if architecture not in ARCHITECTURES:
        return f"it does not read the architecture {architecture!r}"
    scaling = header.get(f"{architecture}.rope.scaling.type", "none")
    factors = [header.get(f"{architecture}.rope.{name}", 1.0) for name in ("scaling.factor", "scale_linear")]
    if scaling != "none" or any(factor not in (0.0, 1.0) for factor in factors):
        return "it ignores the scaling of the rotation"
    if "rope_freqs.weight" in read_tensor_names(weights.path):
        return "it ignores the factors of the rotation's frequencies"
    return None


def find_variant(config: Mapping[str, Any]) -> str | None:
    """Return in what a model differs from a plain decoder, apart from the scaling of its rotation, or `None`.

    Args:
        config: As in `config.json`.
    """
    kinds = config.get("layer_types") or ()
    if config.get("model_type") not in ARCHITECTURES:
        return f"its architecture is {config.get('model_type')!r}, not one of {', '.join(ARCHITECTURES)}"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activations are {config['hidden_act']!r}, not 'silu'"
    if config.get("use_sliding_window") or any(kind != "full_attention" for kind in kinds):
        return "it has sliding attention"
    return None
