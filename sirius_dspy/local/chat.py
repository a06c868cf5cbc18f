"""Tokenizer and chat template of a model: the one place that turns messages into tokens, for inference and training.

Both come from the GGUF file through Hugging Face's reader, which takes seconds, so the converted files are kept in the
home folder. The engines send token ids made here, never text, and the trainer uses the same functions: a training
prompt is the inference prompt, token by token, by construction. Control tokens in messages and replies are text in
both; see `sirius_dspy.local.control`.
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
        """The text up to where the assistant's reply begins, or goes on if the last message is the assistant's own.

        It is for `encode`: what looks like a control token in a message is marked as text.
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
        """Token ids of a text that already has its control tokens written out, as `prompt` does."""
        return control.encode(self.tokenizer.backend_tokenizer, text)

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a whole reply: its text and the end of the turn, which is what an engine stops at."""
        return [*self.encode(self._of_replies.mark(text)), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True))

    def _mark(self, message: Mapping[str, str]) -> dict[str, str]:
        """The message with its control tokens marked, in whatever part of it."""
        marker = self._of_replies if message["role"] == "assistant" else self._of_others
        return {name: marker.mark(text) for name, text in message.items()}

    @cached_property
    def _of_others(self) -> control.Marker:
        """For what users and programs wrote: all that the template writes around messages is text there."""
        return self._marker(self._render_markup(with_replies=True))

    @cached_property
    def _of_replies(self) -> control.Marker:
        """For what models wrote: a tag that the template writes into replies only, as `<think>`, is a token there."""
        return self._marker(self._render_markup(with_replies=False))

    def _marker(self, written: str) -> control.Marker:
        """Marks what the tokenizer calls special, and what the template writes: some models do not call that special.

        A single character is left alone, since it can be written in one way only.
        """
        backend = self.tokenizer.backend_tokenizer
        tokens = {
            str(token.content): number
            for number, token in backend.get_added_tokens_decoder().items()
            if token.special or number == self.end_id or _is_markup(token.content, written)
        }
        return control.Marker(backend, {text: number for text, number in tokens.items() if len(text) > 1})

    def _render_markup(self, *, with_replies: bool) -> str:
        """What the template writes around empty messages; one that refuses some roles is asked without them."""
        roles = ("system", "user", "assistant", "user") if with_replies else ("system", "user")
        for taken in (roles, roles[1:], ("user",)):
            messages = [{"role": role, "content": ""} for role in taken]
            try:
                return str(
                    self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=with_replies)
                )
            except Exception as error:  # templates raise what they like
                logger.debug("The chat template does not take the roles %s: %s", taken, error)
        return ""


def _is_markup(token: str, written: str) -> bool:
    """Whether the template writes this token around messages; words and white space are not meant by it."""
    return token in written and not (token.isspace() or token.isalnum())


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
    """Without the bars of Transformers; the user's setting comes back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
