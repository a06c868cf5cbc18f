"""Tokenizer and chat template of a model, which turn messages into tokens for inference and training.

Hugging Face's reader converts both from the GGUF file, which takes seconds, so the converted files are kept in the home
folder. Engines and trainer use the same functions, and engines receive token ids and never text, so a training prompt
equals the inference prompt token by token. Control tokens in messages and replies are treated as text in both; see
`sirius_dspy.local.control`.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError
from sirius_dspy.local import control
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import alone, home, new_folder
from sirius_dspy.local.models import INSTALL, Weights

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]
"""Chat messages with `role` and `content`."""

_loading = threading.Lock()  # allows one conversion, and one import of Transformers, which is not thread-safe


class Chat:
    """Turns messages into the model's prompt, and text into token ids and back. Thread-safe.

    Args:
        folder: Folder with `tokenizer.json` and the chat template in Hugging Face's format.
        context: Length of the longest sequence that the model can read, in tokens.
    """

    def __init__(self, folder: Path, context: int) -> None:
        self.folder = folder
        self.context = context
        self.tokenizer = _load_tokenizer(folder)

    @property
    def end_id(self) -> int:
        """Id of the token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def end_text(self) -> str:
        """The token that ends a turn, as text."""
        return str(self.tokenizer.eos_token)

    def prompt(self, messages: Messages) -> str:
        """Render the prompt for the assistant's reply, or for its continuation if the last message is the assistant's.

        The result is for `encode`: texts in messages that look like control tokens are marked as text.
        """
        unfinished = messages[-1]["role"] == "assistant"
        return str(
            self.tokenizer.apply_chat_template(
                [self._mark(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
            )
        )

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text that `prompt` returned."""
        return control.encode(self.tokenizer.backend_tokenizer, text)

    def encode_completion(self, text: str) -> list[int]:
        """Return the token ids of a complete reply: its text and the end-of-turn token, where engines stop."""
        return [*self.encode(self._of_replies.mark(text)), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return str(self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))

    def _mark(self, message: Mapping[str, str]) -> dict[str, str]:
        """Mark the control tokens in every part of a message."""
        marker = self._of_replies if message["role"] == "assistant" else self._of_others
        return {name: marker.mark(text) for name, text in message.items()}

    @cached_property
    def _of_others(self) -> control.Marker:
        """The marker for texts of users and programs, in which all markup of the template is text."""
        return self._marker(self._render_markup(with_replies=True))

    @cached_property
    def _of_replies(self) -> control.Marker:
        """The marker for texts of models, in which the template's tags for replies, such as `<think>`, are tokens."""
        return self._marker(self._render_markup(with_replies=False))

    def _marker(self, written: str) -> control.Marker:
        """Make a marker for special tokens and for markup of the template, which some models do not declare as special.

        Single characters are not marked, because marking cannot split them.
        """
        backend = self.tokenizer.backend_tokenizer
        tokens = {
            str(token.content): number
            for number, token in backend.get_added_tokens_decoder().items()
            if token.special or number == self.end_id or _is_markup(token.content, written)
        }
        return control.Marker(backend, {text: number for text, number in tokens.items() if len(text) > 1})

    def _render_markup(self, *, with_replies: bool) -> str:
        """Render empty messages to get the template's markup, leaving out roles that the template refuses."""
        roles = ("system", "user", "assistant", "user") if with_replies else ("system", "user")
        for taken in (roles, roles[1:], ("user",)):
            messages = [{"role": role, "content": ""} for role in taken]
            try:
                return str(
                    self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=with_replies)
                )
            except Exception as error:  # templates may raise anything
                logger.debug("The chat template does not take the roles %s: %s", taken, error)
        return ""


def _is_markup(token: str, written: str) -> bool:
    """Return whether a token is markup of the template; words and whitespace are not."""
    return token in written and not (token.isspace() or token.isalnum())


def load_chat(weights: Weights) -> Chat:
    """Load the chat of some weights; the first time, it is converted from the GGUF file.

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
    """Return the folder of the converted tokenizer of some weights."""
    return home("tokenizers", weights.digits)


def share_chat(source: Weights, target: Weights) -> None:
    """Copy the converted tokenizer to fine-tuned weights, since fine-tuning does not change it."""
    if chat_folder(target).is_dir():
        return
    with new_folder(chat_folder(target)) as draft:
        shutil.copytree(load_chat(source).folder, draft, dirs_exist_ok=True)


def _convert(gguf: Path, folder: Path) -> None:
    with no_progress_bars(), alone(gguf) as file:
        tokenizer = _auto_tokenizer().from_pretrained(
            str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    with new_folder(folder) as draft:
        tokenizer.save_pretrained(str(draft))


def _load_tokenizer(folder: Path) -> Any:
    return _auto_tokenizer().from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _auto_tokenizer() -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependencyError(f"Chat templates of local models need transformers. Run `{INSTALL}`.") from error
    return AutoTokenizer


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of Transformers in the block, and restore the user's setting."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
