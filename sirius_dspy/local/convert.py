"""Converts model folders into GGUF files, which OpenVINO, llama.cpp and Ollama run.

Matrices become Q8_0, as in merged files; norms and biases stay exact. Tensors are read and written one by one, so that
a model need not fit into memory twice.

References:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sirius_dspy.errors import UnreadableModelError
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.merge import Matrix, permute
from sirius_dspy.local.plain_decoder import find_gguf_obstacle, head_width, read_rotation, read_splitter
from sirius_dspy.local.weights import Weights, files_of, isolated

_Q8_0, _F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
_ROWS = 32
"""Numbers that share a scale in Q8_0."""


def convert(weights: Weights, chat: Chat, target: Path, name: str) -> Path:
    """Write a model folder as a GGUF file, which appears when it is complete.

    Args:
        weights: A model folder.
        chat: Its tokenizer and chat template.
        target: The file to write.
        name: The `general.name` of the file.

    Returns:
        The file.

    Raises:
        UnreadableModelError: The model has no equivalent in GGUF.
    """
    problem = find_gguf_obstacle(weights)
    if problem is not None:
        raise UnreadableModelError(f"{weights.id!r} cannot be converted to GGUF: {problem}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        _write(weights, chat, Path(draft), name)
        os.replace(draft, target)
    finally:
        Path(draft).unlink(missing_ok=True)
    return target


def _write(weights: Weights, chat: Chat, path: Path, name: str) -> None:
    config = weights.config
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_sizes(writer, config, chat.context)
    _add_tokenizer(writer, chat, config["vocab_size"], read_splitter(weights.path))
    factors = _frequency_factors(weights)
    if factors is not None:
        _announce(writer, "rope_freqs.weight", factors.shape)
    shapes = {_rename(name, config): (name, shape) for name, shape in _shapes(weights)}
    for tensor, (_, shape) in shapes.items():
        _announce(writer, tensor, shape)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for values in _read(weights, [name for name, _ in shapes.values()]):
            writer.write_tensor_data(values if values.ndim == 1 else gguf.quants.quantize(values, _Q8_0))
    finally:
        writer.close()


def _announce(writer: gguf.GGUFWriter, tensor: str, shape: tuple[int, ...]) -> None:
    """Say what will be written: vectors exactly, matrices in blocks of numbers that share a scale."""
    count, is_vector = int(np.prod(shape)), len(shape) == 1
    size = count * 4 if is_vector else count // _ROWS * 34
    writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, _F32 if is_vector else _Q8_0)


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any], context: int) -> None:
    width = head_width(config)
    writer.add_context_length(context)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rotation = read_rotation(config)
    writer.add_rope_freq_base(rotation["rope_theta"])
    if rotation["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rotation["rope_type"]))
        writer.add_rope_scaling_factor(rotation["factor"])
    if rotation["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rotation.get("original_max_position_embeddings") or context)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _frequency_factors(weights: Weights) -> Matrix | None:
    """Return by what Llama 3.1 and later divide each frequency of the rotation; `None` if by nothing."""
    if read_rotation(weights.config)["rope_type"] != "llama3":
        return None
    with isolated(weights.path) as folder:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    width = head_width(weights.config)
    plain = read_rotation(weights.config)["rope_theta"] ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    factors: Matrix = (plain / scaled.numpy()).astype(np.float32)
    return factors


def _add_tokenizer(writer: gguf.GGUFWriter, chat: Chat, size: int, splitter: str | None) -> None:
    model = json.loads(chat.tokenizer.backend_tokenizer.to_str())["model"]
    added = chat.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    texts = {number: text for text, number in model["vocab"].items()}
    texts |= {number: token.content for number, token in added.items()}
    kinds = {
        number: gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
        for number, token in added.items()
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(splitter))
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    unknown = gguf.TokenType.UNUSED
    writer.add_token_types(
        [kinds.get(number, gguf.TokenType.NORMAL if number in texts else unknown) for number in range(size)]
    )
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(chat.end_id)
    if chat.tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(chat.tokenizer.bos_token_id)
    if chat.tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(chat.tokenizer.pad_token_id)
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(chat.tokenizer.chat_template)


def _rename(name: str, config: dict[str, Any]) -> str:
    """Return the name in GGUF of a tensor of Transformers."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"])
    renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if renamed is None:
        raise UnreadableModelError(f"The model has a tensor {name!r}, for which GGUF has no name.")
    return renamed


def _shapes(weights: Weights) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors to write; a head that is tied to the embedding is left out."""
    is_tied = weights.config.get("tie_word_embeddings", False)
    for file in _tensor_files(weights):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                if not (is_tied and name == "lm_head.weight") and not name.endswith("rotary_emb.inv_freq"):
                    yield name, tuple(tensors.get_slice(name).get_shape())


def _read(weights: Weights, names: list[str]) -> Iterator[Matrix]:
    """Yield tensors in this order, in float32, and their rows in the order of GGUF."""
    wanted, config = set(names), weights.config
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"],
    }
    for file in _tensor_files(weights):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                if name not in wanted:
                    continue
                values: Matrix = tensors.get_tensor(name).float().numpy()
                kind = name.split(".")[-2]
                is_rotated = config["model_type"] == "llama" and kind in heads
                yield permute(values, heads[kind]) if is_rotated else values


def _tensor_files(weights: Weights) -> list[Path]:
    return [file for file in files_of(weights.path) if file.suffix == ".safetensors"]
