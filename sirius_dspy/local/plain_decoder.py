"""Which models are plain Llama or Qwen decoders: only those are computed by OpenVINO's reader of GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sirius_dspy.local.gguf_header import read_header, read_tensor_names
from sirius_dspy.local.weights import Weights

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""As `general.architecture` of a GGUF file, and as `model_type` of a configuration."""

ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Scalings of the rotation that are converted into GGUF."""

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITTERS = {_QWEN: "qwen2", _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe"}
"""Pattern at which a tokenizer splits texts, to its name in GGUF."""


def find_obstacle(weights: Weights) -> str | None:
    """Return why OpenVINO cannot compute a model, or `None` if it can.

    Of the rotation of queries and keys, OpenVINO's reader knows the base frequency only. It ignores all scaling, which
    Llama 3.1 and later have, so their text would be wrong.
    """
    return _in_gguf(weights) if weights.is_gguf else _in_folder(weights)


def _in_gguf(weights: Weights) -> str | None:
    header = read_header(weights.path)
    architecture = header.get("general.architecture")
    if architecture not in ARCHITECTURES:
        return f"OpenVINO does not read the architecture {architecture!r}"
    scaling = header.get(f"{architecture}.rope.scaling.type", "none")
    factors = [header.get(f"{architecture}.rope.{name}", 1.0) for name in ("scaling.factor", "scale_linear")]
    if scaling != "none" or any(factor not in (0.0, 1.0) for factor in factors):
        return "OpenVINO would ignore the scaling of its rotation"
    if "rope_freqs.weight" in read_tensor_names(weights.path):
        return "OpenVINO would ignore the factors of its rotation's frequencies"
    return None


def _in_folder(weights: Weights) -> str | None:
    kind = read_rotation(weights.config)["rope_type"]
    scaled = None if kind == "default" else f"OpenVINO would ignore the scaling {kind!r} of its rotation"
    return find_gguf_obstacle(weights) or scaled


def find_gguf_obstacle(weights: Weights) -> str | None:
    """Return why a model folder is not converted into a GGUF file, or `None` if it can be."""
    config = weights.config
    if (variant := find_variant(config)) is not None:
        return variant
    rotation = read_rotation(config)
    if rotation["rope_type"] not in ROTATIONS or rotation.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotation is scaled by {rotation['rope_type']!r}, not by one of {', '.join(ROTATIONS)}"
    if config["model_type"] != "qwen2" and (config.get("attention_bias") or config.get("mlp_bias")):
        return "its linear layers have biases"
    rows = (config["hidden_size"], config["intermediate_size"], config["num_attention_heads"] * head_width(config))
    if any(row % 32 for row in rows):
        return f"the rows of its matrices, {rows}, cannot be divided into blocks of 32"
    if read_splitter(weights.path) is None:
        return "its tokenizer splits texts in a way for which GGUF has no name here"
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


def read_rotation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotation of queries and keys, which older files have in several places."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    return {"rope_theta": config.get("rope_theta", 10000.0), **given, "rope_type": kind}


def head_width(config: Mapping[str, Any]) -> int:
    """Return the size of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def read_splitter(folder: Path) -> str | None:
    """Return GGUF's name for the way in which a byte-level tokenizer splits texts; `None` if it is none of a few."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if tokenizer["model"].get("type") != "BPE" or not tokenizer.get("pre_tokenizer"):
        return None
    steps = tokenizer["pre_tokenizer"].get("pretokenizers", [tokenizer["pre_tokenizer"]])
    kinds = [step["type"] for step in steps]
    if steps[-1].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated":
        return _SPLITTERS.get(steps[0]["pattern"].get("Regex", ""))
    return None
