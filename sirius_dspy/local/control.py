"""Text that looks like control tokens stays text.

A tokenizer finds its control tokens, such as `<|im_end|>`, wherever they stand, so a text that holds one would end its
turn and could open another. Such a text gets a mark inside the look-alike on its way into the chat template; the mark
splits the prompt where it is turned into tokens, and is gone by then. So no character is lost or changed, and only the
template writes control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_MARK = "\ufdd0"
"""Unicode keeps this code point free for such uses. Two in a row are one that was in the text."""

_ALONE = re.compile(rf"(?<!{_MARK}){_MARK}(?!{_MARK})")
_CHARACTER = re.compile(rf"{_MARK}{_MARK}|.", re.DOTALL)


class Marker:
    """Marks some of the tokens of a tokenizer in texts. Safe in many threads.

    Args:
        backend: A tokenizer of the package `tokenizers`.
        tokens: Text to id of those that a text must not hold.
    """

    def __init__(self, backend: Any, tokens: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        self._backend = backend
        self._ids = frozenset(tokens.values())
        # A lookahead, so that the first character of each is found, also where tokens overlap.
        self._first = re.compile(rf"(?=(?:{'|'.join(map(re.escape, tokens))})).", re.DOTALL) if tokens else None
        added = backend.get_added_tokens_decoder()
        self._is_fuzzy = backend.normalizer is not None and any(added[number].normalized for number in self._ids)

    def mark(self, text: str) -> str:
        """The text, in which `encode` finds none of the tokens."""
        text = text.replace(_MARK, _MARK * 2)
        if self._first is None:
            return text
        marked = self._first.sub(lambda found: f"{found.group()}{_MARK}", text)
        if self._is_fuzzy and not self._ids.isdisjoint(encode(self._backend, marked)):
            # It is the token only to the tokenizer, which e.g. makes capital letters small first.
            marked = _MARK.join(_CHARACTER.findall(text))
        return marked


def encode(backend: Any, text: str) -> list[int]:
    """Token ids of a text with marks.

    A tokenizer that begins each text with a space puts one at a mark, too; most do not.
    """
    ids: list[int] = []
    for part in _parts(text):
        ids += backend.encode(part, add_special_tokens=False).ids
    return ids


def _parts(text: str) -> Iterator[str]:
    for part in _ALONE.split(text):
        yield part.replace(_MARK * 2, _MARK)
