"""Merges PEFT LoRA adapters into a GGUF file, which OpenVINO, llama.cpp and Ollama can serve.

The base stays in GGUF: only the changed matrices are de-quantized and written again as Q8_0. Names, shapes and metadata
are copied, so tokenizer, chat template and tied embeddings are unchanged.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
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


def merge(base: Path, adapters: Mapping[Path, Path], *, name: str) -> list[int]:
    """Write `base` plus each of several adapters as Q8_0 GGUF files.

    Args:
        base: GGUF file that the adapters were trained on, with the Llama, Qwen2 or Qwen3 architecture.
        adapters: Folder with `adapter_config.json` and `adapter_model.safetensors` to the file to write. All files
            appear at the end.
        name: The `general.name` of the new files.

    Returns:
        The number of changed matrices of each.

    Raises:
        TrainingError: The architecture is not supported, or the base does not have a matrix of an adapter.

    References:
        `LlamaModel.permute` of llama.cpp's `convert_hf_to_gguf.py` for the row order.
    """
    reader = _read(base)
    architecture = str(_field(reader, "general.architecture"))
    if architecture not in PERMUTED:
        raise TrainingError(
            f"Cannot merge into the architecture {architecture!r}; expected one of {', '.join(PERMUTED)}. The trained "
            f"adapter is in {str(next(iter(adapters)))!r} and can be served with PEFT or vLLM."
        )
    shape = _Shape(
        PERMUTED[architecture],
        _field(reader, f"{architecture}.attention.head_count"),
        _field(reader, f"{architecture}.attention.head_count_kv"),
    )
    changes = [_Changes.read(adapter, shape) for adapter in adapters]
    for adapter, change in zip(adapters, changes, strict=True):
        _check(reader, adapter, change, base)
    drafts = [target.with_name(f".{target.name}.draft") for target in adapters.values()]
    _write(reader, changes, drafts, name)
    for draft, target in zip(drafts, adapters.values(), strict=True):
        os.replace(draft, target)
    return [len(change.factors) for change in changes]


def _read(base: Path) -> gguf.GGUFReader:
    """Read a file, or return what an earlier call read: parsing the vocabulary takes seconds."""
    found = base.stat()
    return _read_version(base, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache(maxsize=1)
def _read_version(base: Path, version: tuple[int, ...]) -> gguf.GGUFReader:
    return gguf.GGUFReader(base)


def _check(reader: gguf.GGUFReader, adapter: Path, changes: _Changes, base: Path) -> None:
    strangers = sorted(changes.factors.keys() - {tensor.name for tensor in reader.tensors})
    if strangers:
        raise TrainingError(
            f"The adapter in {str(adapter)!r} changes {strangers[0]!r}, which {str(base)!r} does not have. "
            "Merge it into the base it was trained on."
        )


@dataclass(frozen=True, slots=True)
class _Changes:
    """What an adapter changes."""

    factors: Mapping[str, tuple[str, Matrix, Matrix]]
    """GGUF tensor name to the module of Transformers, and its narrow and wide factor."""
    scale: float
    shape: _Shape

    @classmethod
    def read(cls, adapter: Path, shape: _Shape) -> _Changes:
        """Read a folder of PEFT's."""
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        given = load_file(adapter / "adapter_model.safetensors")
        factors: dict[str, tuple[str, Matrix, Matrix]] = {}
        for key, narrow in given.items():
            if ".lora_A." not in key:
                continue
            layer, module = key.split(".layers.")[1].removesuffix(".lora_A.weight").split(".", 1)
            factors[f"blk.{layer}.{TENSORS[module]}.weight"] = module, narrow, given[key.replace("lora_A", "lora_B")]
        return cls(factors, settings["lora_alpha"] / settings["r"], shape)

    def delta(self, tensor: str) -> Matrix | None:
        """Return `(alpha / rank) * B @ A`, with rows in the file's order; `None` if the tensor stays as it is."""
        if tensor not in self.factors:
            return None
        module, narrow, wide = self.factors[tensor]
        delta: Matrix = self.scale * wide.astype(np.float32) @ narrow.astype(np.float32)
        if not self.shape.permuted or module not in ("self_attn.q_proj", "self_attn.k_proj"):
            return delta
        return permute(delta, self.shape.heads if module.endswith("q_proj") else self.shape.kv_heads)


def permute(rows: Matrix, heads: int) -> Matrix:
    """Reorder `(heads * width, columns)` from Hugging Face's rotation, halves apart, to GGUF's, halves interleaved."""
    height, columns = rows.shape
    return rows.reshape(heads, 2, height // heads // 2, columns).swapaxes(1, 2).reshape(height, columns)


def _write(reader: gguf.GGUFReader, changes: Sequence[_Changes], targets: Sequence[Path], name: str) -> None:
    writers = [gguf.GGUFWriter(target, str(_field(reader, "general.architecture"))) for target in targets]
    try:
        _copy_metadata(reader, writers, name)
        for tensor in reader.tensors:
            results = _merge(tensor, [change.delta(tensor.name) for change in changes])
            for writer, (data, kind) in zip(writers, results, strict=True):
                writer.add_tensor(tensor.name, data, raw_dtype=kind)
        for writer in writers:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        for writer in writers:
            writer.close()


def _copy_metadata(reader: gguf.GGUFReader, writers: Sequence[gguf.GGUFWriter], name: str) -> None:
    replaced = {"general.architecture", "general.name", "general.file_type"}
    for writer in writers:
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in replaced:
            continue
        kind, contents = field.types[0], field.contents()
        item_kind = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        for writer in writers:
            writer.add_key_value(field.name, contents, kind, sub_type=item_kind)


def _merge(tensor: gguf.ReaderTensor, deltas: Sequence[Matrix | None]) -> list[tuple[Any, gguf.GGMLQuantizationType]]:
    """Return the tensor with each delta. Vectors (norms, biases) and unchanged Q8_0 matrices are copied."""
    is_vector, q8_0 = len(tensor.shape) == 1, gguf.GGMLQuantizationType.Q8_0
    if is_vector or (tensor.tensor_type == q8_0 and not any(delta is not None for delta in deltas)):
        return [(np.array(tensor.data), tensor.tensor_type)] * len(deltas)
    shape = [int(size) for size in reversed(tensor.shape)]
    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)
    unchanged = functools.cache(lambda: gguf.quants.quantize(weights, q8_0))
    return [(unchanged() if delta is None else gguf.quants.quantize(weights + delta, q8_0), q8_0) for delta in deltas]


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    if field is None:
        raise TrainingError(f"The base model's GGUF file has no {key!r}. Use a complete GGUF file.")
    return field.contents()
