"""Merges a PEFT LoRA adapter into a GGUF file, which OpenVINO, llama.cpp and Ollama can serve.

The base stays in GGUF: only the changed matrices are de-quantized and written again as Q8_0. Names, shapes and metadata
are copied, so tokenizer, chat template and tied embeddings are unchanged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from sirius_dspy.errors import TrainingError

Matrix = np.ndarray[Any, np.dtype[np.float32]]

TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face module to GGUF tensor; Llama and Qwen use the same names."""

PERMUTED = {"llama": True, "qwen2": False, "qwen3": False}
"""Architecture to whether its file stores query and key rows in the interleaved order of llama.cpp's rotation."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers on which the order of query and key rows depends."""

    permuted: bool
    heads: int
    kv_heads: int


def merge(base: Path, adapter: Path, target: Path, *, name: str) -> int:
    """Write `base` plus `adapter` as a Q8_0 GGUF file.

    Args:
        base: GGUF file that the adapter was trained on, with the Llama, Qwen2 or Qwen3 architecture.
        adapter: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        target: File to write, under a temporary name that is renamed at the end.
        name: The `general.name` of the new file.

    Returns:
        The number of changed matrices.

    Raises:
        TrainingError: The architecture is not supported, or the base does not have a matrix of the adapter.

    References:
        `LlamaModel.permute` of llama.cpp's `convert_hf_to_gguf.py` for the row order.
    """
    reader = gguf.GGUFReader(base)
    architecture = str(_field(reader, "general.architecture"))
    if architecture not in PERMUTED:
        raise TrainingError(
            f"Cannot merge into the architecture {architecture!r}; expected one of {', '.join(PERMUTED)}. "
            f"The trained adapter is in {str(adapter)!r} and can be served with PEFT or vLLM."
        )
    shape = _Shape(
        PERMUTED[architecture],
        _field(reader, f"{architecture}.attention.head_count"),
        _field(reader, f"{architecture}.attention.head_count_kv"),
    )
    deltas = adapter_deltas(adapter, shape)
    strangers = sorted(deltas.keys() - {tensor.name for tensor in reader.tensors})
    if strangers:
        raise TrainingError(
            f"The adapter in {str(adapter)!r} changes {strangers[0]!r}, which {str(base)!r} does not have. "
            "Merge it into the base it was trained on."
        )
    draft = target.with_name(f".{target.name}.draft")
    _write(reader, architecture, deltas, draft, name)
    os.replace(draft, target)
    return len(deltas)


def adapter_deltas(adapter: Path, shape: _Shape) -> dict[str, Matrix]:
    """Map GGUF tensor names to the adapter's updates, `(alpha / rank) * B @ A`, with rows in the file's order."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    factors = load_file(adapter / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    deltas: dict[str, Matrix] = {}
    for key, narrow in factors.items():
        if ".lora_A." not in key:
            continue
        layer, module = key.split(".layers.")[1].removesuffix(".lora_A.weight").split(".", 1)
        delta = scale * factors[key.replace(".lora_A.", ".lora_B.")].astype(np.float32) @ narrow.astype(np.float32)
        if shape.permuted and module in ("self_attn.q_proj", "self_attn.k_proj"):
            delta = permute(delta, shape.heads if module.endswith("q_proj") else shape.kv_heads)
        deltas[f"blk.{layer}.{TENSORS[module]}.weight"] = delta
    return deltas


def permute(rows: Matrix, heads: int) -> Matrix:
    """Reorder `(heads * width, columns)` from Hugging Face's rotation, halves apart, to GGUF's, halves interleaved."""
    height, columns = rows.shape
    return rows.reshape(heads, 2, height // heads // 2, columns).swapaxes(1, 2).reshape(height, columns)


def _write(reader: gguf.GGUFReader, architecture: str, deltas: Mapping[str, Matrix], target: Path, name: str) -> None:
    writer = gguf.GGUFWriter(target, architecture)
    try:
        _copy_metadata(reader, writer, name)
        for tensor in reader.tensors:
            _add(writer, tensor, deltas.get(tensor.name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, name: str) -> None:
    replaced = {"general.architecture", "general.name", "general.file_type"}
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in replaced:
            continue
        kind = field.types[0]
        item_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item_kind)


def _add(writer: gguf.GGUFWriter, tensor: gguf.ReaderTensor, delta: Matrix | None) -> None:
    """Add one tensor. Vectors (norms, biases) and unchanged Q8_0 matrices are copied."""
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    if delta is None and (len(tensor.shape) == 1 or tensor.tensor_type == q8_0):
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        return
    shape = [int(size) for size in reversed(tensor.shape)]
    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    if delta is not None:
        weights = weights + delta
    writer.add_tensor(tensor.name, gguf.quants.quantize(weights.astype(np.float32), q8_0), raw_dtype=q8_0)


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise TrainingError(f"The base model's GGUF file has no {key!r}. Use a complete GGUF file.")
    return field.contents()
