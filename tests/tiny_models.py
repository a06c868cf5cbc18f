"""Random models of a few kilobytes in Hugging Face's format, with a tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
HEADS = {"num_key_value_heads": 2, "head_dim": 16}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", HEADS),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {**HEADS, "head_dim": 128, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "mistral": ("MistralConfig", {**HEADS, "sliding_window": 8}),
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
END, START, STOP = "<|im_end|>", "<|im_start|>", "<|endoftext|>"


def write_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a random model, the same at every call."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config, sizes = CONFIGS[kind]
    ends = tokenizer.convert_tokens_to_ids([END, STOP])
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(
            **SIZES,
            **{
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 256,
                "initializer_range": 0.3,
                "bos_token_id": None,
                "eos_token_id": ends[0],
                "pad_token_id": ends[1],
                **sizes,
                **changes,
            },
        ),
        dtype=torch.float32,
    )
    model.generation_config.eos_token_id = ends
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def build_tokenizer() -> Any:
    """A byte-level tokenizer with a few merges, which splits as GPT-2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[STOP, START, END],
        show_progress=False,
    )
    backend.train_from_iterator(["the name is Ann and the tea is the tea of Bob, the user, not of Cid"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=STOP, model_max_length=256)
    tokenizer.chat_template = CHATML
    return tokenizer
