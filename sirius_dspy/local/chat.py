"""Tokenizer and chat template of a model, which turn messages into tokens for inference and training.

A model folder has both in Hugging Face's format. From a GGUF file, Hugging Face's reader converts them, which takes
seconds. Either way, the files are kept in the home folder, where training processes read them, too.

Engines and trainer use the same functions, and engines receive token ids and never text, so a training prompt equals
the inference prompt token by token. Control tokens in messages and replies are treated as text in both; see
`sirius_dspy.local.control`.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sirius_dspy.errors import MissingDependencyError, UnreadableModelError
from sirius_dspy.local import control, tools
from sirius_dspy.local.gguf_header import read_header
from sirius_dspy.local.home import INSTALL, home, new_folder
from sirius_dspy.local.tool_calls import read_reply
from sirius_dspy.local.weights import TOKENIZER_FILES, Weights, isolated, no_template, read_context

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]
"""Chat messages with `role` and `content`, and in OpenAI's format native tool calls and their results."""

Tools = Sequence[Mapping[str, Any]]
"""Schemas of tools that are offered natively, in OpenAI's format."""

_loading = threading.Lock()  # allows one conversion, and one import of Transformers, which is not thread-safe


class Chat:
    """Turns messages into the model's prompt, and text into token ids and back. Thread-safe.

    Args:
        folder: Folder with `tokenizer.json` and the chat template in Hugging Face's format.
        context: Length of the longest sequence that the model can read, in tokens; by default, the tokenizer's limit.

    Raises:
        UnreadableModelError: The tokenizer has no chat template, no end-of-turn token, or no fast version.
    """

    def __init__(self, folder: Path, context: int | None) -> None:
        self.folder = folder
        self.tokenizer = _load_tokenizer(folder)
        self.context = context or _limit(self.tokenizer, folder)
        if not self.tokenizer.chat_template:
            raise UnreadableModelError(no_template(str(folder)))
        self.end_ids = _read_end_ids(folder, self.tokenizer)
        """Ids of the tokens that end a reply."""

    @cached_property
    def end_id(self) -> int:
        """Id of the token that ends a turn: the last one that the template writes, if several can end a reply."""
        if len(self.end_ids) == 1:
            return next(iter(self.end_ids))
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]
        written = self.encode(str(self.tokenizer.apply_chat_template(turns, tokenize=False)))
        ends = [token for token in written if token in self.end_ids]
        return ends[-1] if ends else min(self.end_ids)

    @property
    def end_text(self) -> str:
        """The token that ends a turn, as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_id))

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the chat template writes tools, tool calls and their results."""
        return tools.renders_tools(self._render)

    @cached_property
    def calls_tools(self) -> bool:
        """Whether the template writes tool calls in a form in which they can be read from a reply."""
        if not self.renders_tools:
            return False
        calls = [(name, {"argument": {"text": "ä", "numbers": [1, None]}}) for name in ("first", "second")]
        written = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        reply = {"role": "assistant", "content": "", "tool_calls": written}
        return read_reply(self.reply_text([{"role": "user", "content": ""}], reply))[1] == calls

    def prompt(self, messages: Messages, offered: Tools = ()) -> str:
        """Render the prompt for the assistant's reply, or for its continuation if the last message is the assistant's.

        The result is for `encode`: texts in messages that look like control tokens are marked as text.

        Args:
            messages: The conversation.
            offered: The tools that the assistant may call; the template must write them (`renders_tools`).
        """
        unfinished = messages[-1]["role"] == "assistant"
        marked = [self._mark(message) for message in messages]
        return self._render(marked, self._mark_tools(offered), is_prompt=not unfinished, is_unfinished=unfinished)

    def reply_text(self, messages: Messages, reply: Mapping[str, Any], offered: Tools = ()) -> str:
        """Return the text with which the model gives a reply: its content or, as the template writes them, its calls.

        Args:
            messages: The conversation before it.
            reply: A message of the assistant.
            offered: The tools that it may call.

        Raises:
            UnreadableModelError: The template writes the conversation in another way where the reply follows.
        """
        if not reply.get("tool_calls"):
            return str(reply["content"])
        prompt = self.prompt(messages, offered)
        marked = [*(self._mark(message) for message in messages), tools.template_message(reply)]
        whole = self._render(marked, self._mark_tools(offered))
        if not whole.startswith(prompt):
            raise UnreadableModelError(
                f"The chat template in {str(self.folder)!r} cannot be trained on tool calls: what it writes before a "
                "reply with tool calls is not the prompt of that reply."
            )
        written = whole[len(prompt) :]
        text, end, _ = written.rpartition(self.end_text)
        return text if end else written.rstrip()  # some templates end a turn with the start of the next one

    def _render(
        self, messages: Messages, offered: Tools = (), *, is_prompt: bool = False, is_unfinished: bool = False
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(offered) or None,
                tokenize=False,
                add_generation_prompt=is_prompt,
                continue_final_message=is_unfinished,
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

    def _mark(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Mark the control tokens in every part of a message."""
        marker = self._of_replies if message["role"] == "assistant" else self._of_others
        return {name: tools.map_texts(part, marker.mark) for name, part in tools.template_message(message).items()}

    def _mark_tools(self, offered: Tools) -> Tools:
        return [tools.map_texts(dict(tool), self._of_others.mark) for tool in offered]

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
            if token.special or number in self.end_ids or _is_markup(token.content, written)
        }
        return control.Marker(backend, {text: number for text, number in tokens.items() if len(text) > 1})

    def _render_markup(self, *, with_replies: bool) -> str:
        """Render empty messages to get the template's markup, leaving out roles that the template refuses."""
        roles = ("system", "user", "assistant", "user") if with_replies else ("system", "user")
        of_tools = tools.markup(self._render) if with_replies else ""
        for taken in (roles, roles[1:], ("user",)):
            try:
                empty = [{"role": role, "content": ""} for role in taken]
                return self._render(empty, is_prompt=with_replies) + of_tools
            except Exception as error:  # templates may raise anything
                logger.debug("The chat template does not take the roles %s: %s", taken, error)
        return of_tools


def _is_markup(token: str, written: str) -> bool:
    """Return whether a token is markup of the template; words and whitespace are not."""
    return token in written and not (token.isspace() or token.isalnum())


def load_chat(weights: Weights) -> Chat:
    """Load the chat of some weights; the first time, it is copied from the folder or converted from the GGUF file.

    Raises:
        MissingDependencyError: `transformers` is not installed.
        UnreadableModelError: The model cannot chat.
    """
    with _loading:
        return _load_chat(weights, chat_folder(weights))


@lru_cache(maxsize=16)
def _load_chat(weights: Weights, folder: Path) -> Chat:
    if not folder.is_dir():
        _prepare(weights, folder)
    if not weights.is_gguf:
        return Chat(folder, read_context(weights))
    header = read_header(weights.path)
    return Chat(folder, int(header[f"{header['general.architecture']}.context_length"]))


def chat_folder(weights: Weights) -> Path:
    """Return the folder of the tokenizer of some weights."""
    return home("tokenizers", weights.digits)


def share_chat(source: Weights, target: Weights) -> None:
    """Copy the tokenizer to fine-tuned weights, since fine-tuning does not change it."""
    if chat_folder(target).is_dir():
        return
    with new_folder(chat_folder(target)) as draft:
        shutil.copytree(load_chat(source).folder, draft, dirs_exist_ok=True)


def _prepare(weights: Weights, folder: Path) -> None:
    if not weights.is_gguf:
        with new_folder(folder) as draft:
            copy_tokenizer(weights.path, draft)
        return
    with no_progress_bars(), isolated(weights.path) as file:
        tokenizer = _auto_tokenizer().from_pretrained(
            str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    with new_folder(folder) as draft:
        tokenizer.save_pretrained(str(draft))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer, and which tokens end a reply, from one folder to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read_end_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Return the tokens at which the model's own settings and its tokenizer end a reply."""
    file = folder / "generation_config.json"
    given = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    ids = given if isinstance(given, list) else [given]
    ends = frozenset(int(number) for number in (*ids, tokenizer.eos_token_id) if number is not None)
    if not ends:
        raise UnreadableModelError(
            f"The model in {str(folder)!r} names no token that ends a reply. Set `eos_token_id` in its "
            "`generation_config.json`."
        )
    return ends


def _limit(tokenizer: Any, folder: Path) -> int:
    if tokenizer.model_max_length > 1 << 30:  # what Transformers says if it does not know
        raise UnreadableModelError(
            f"The model in {str(folder)!r} does not say how many tokens it reads. Set `model_max_length` in its "
            "`tokenizer_config.json`."
        )
    return int(tokenizer.model_max_length)


def _load_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = _auto_tokenizer().from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnreadableModelError(
            f"Transformers cannot read the tokenizer in {str(folder)!r}, without running code of the model: {error}"
        ) from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UnreadableModelError(
            f"The tokenizer in {str(folder)!r} has no `tokenizer.json`. Save it as a fast tokenizer of Transformers."
        )
    return tokenizer


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
