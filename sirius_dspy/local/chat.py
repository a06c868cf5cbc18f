"""Tokenizer and chat template of a model: the one place that turns messages into tokens, for inference and training.

Both come from the GGUF file through Hugging Face's reader, which takes seconds, so the converted files are kept in the
home folder. The engines send token ids made here, never text, and the trainer uses the same functions: a training
prompt is the inference prompt, token by token, by construction.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import home, new_folder
from sirius_dspy.local.models import INSTALL, Weights

Messages = Sequence[Mapping[str, str]]
"""Chat messages with `role` and `content`."""

_loading = threading.Lock()  # one conversion at a time, and one import of Transformers, which is not thread-safe


class Chat:
    """Turns messages into the prompt a model was tuned for, text into token ids, and back. Safe in many threads.

    Args:
        folder: Holds `tokenizer.json` and the chat template, as Hugging Face writes them.
        context: The longest sequence the model can read, in tokens.
    """

    def __init__(self, folder: Path, context: int) -> None:
        self.folder = folder
        self.context = context
        self.tokenizer = _load_tokenizer(folder)

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    def prompt(self, messages: Messages) -> str:
        """The text up to where the assistant's reply begins, or goes on if the last message is the assistant's own."""
        unfinished = messages[-1]["role"] == "assistant"
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
            )
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that already has its special tokens written out."""
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a whole reply: its text and the end of the turn, which is what an engine stops at."""
        return [*self.encode(text), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))


def load_chat(weights: Weights) -> Chat:
    """The chat of some weights; converted from the GGUF file the first time.

    Raises:
        MissingDependencyError: `transformers` is not installed.
    """
    with _loading:
        return _load_chat(weights.gguf, chat_folder(weights))


@lru_cache(maxsize=16)
def _load_chat(gguf: Path, folder: Path) -> Chat:
    if not folder.is_dir():
        _convert(gguf, folder)
    header = read_header(gguf)
    return Chat(folder, int(header[f"{header['general.architecture']}.context_length"]))


def chat_folder(weights: Weights) -> Path:
    """Where the converted tokenizer of some weights is kept."""
    return home("tokenizers", weights.digits)


def share_chat(source: Weights, target: Weights) -> None:
    """Fine-tuning changes no token: give new weights the converted tokenizer of those they came from."""
    if chat_folder(target).is_dir():
        return
    with new_folder(chat_folder(target)) as draft:
        shutil.copytree(load_chat(source).folder, draft, dirs_exist_ok=True)


def _convert(gguf: Path, folder: Path) -> None:
    with no_progress_bars():
        tokenizer = _auto_tokenizer().from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    with new_folder(folder) as draft:
        tokenizer.save_pretrained(str(draft))


def _load_tokenizer(folder: Path) -> Any:
    return _auto_tokenizer().from_pretrained(str(folder), local_files_only=True)


def _auto_tokenizer() -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(f"Chat templates of local models need transformers. Run `{INSTALL}`.") from error
    return AutoTokenizer


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars of Transformers; the user's setting comes back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
