"""Keeps text that looks like control tokens as text.

A tokenizer finds its control tokens, such as `<|im_end|>`, anywhere, so a text that contains one would end its turn and
could start another. Before such a text enters the chat template, a mark is inserted into the look-alike. When the
prompt is encoded, it is split at the marks, which are dropped. So no character is lost or changed, and only the
template can write control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_MARK = "\ufdd0"
"""A code point that Unicode reserves for internal use. Two in a row represent one in the original text."""

_ALONE = re.compile(rf"(?<!{_MARK}){_MARK}(?!{_MARK})")
_CHARACTER = re.compile(rf"{_MARK}{_MARK}|.", re.DOTALL)


class Marker:
    """Marks some of the tokens of a tokenizer in texts. Thread-safe.

    Args:
        backend: A tokenizer of the package `tokenizers`.
        tokens: Text to id of the tokens that a text must not contain.
    """

    def __init__(self, backend: Any, tokens: Mapping[str, int]) -> None:
        self.tokens = dict(tokens)
        self._backend = backend
        self._ids = frozenset(tokens.values())
        # A lookahead finds the first character of each token, even if tokens overlap.
        self._first = re.compile(rf"(?=(?:{'|'.join(map(re.escape, tokens))})).", re.DOTALL) if tokens else None
        added = backend.get_added_tokens_decoder()
        self._is_fuzzy = backend.normalizer is not None and any(added[number].normalized for number in self._ids)

    def mark(self, text: str) -> str:
        """Mark a text so that `encode` finds none of the tokens in it."""
        text = text.replace(_MARK, _MARK * 2)
        if self._first is None:
            return text
        marked = self._first.sub(lambda match: f"{match.group()}{_MARK}", text)
        if self._is_fuzzy and not self._ids.isdisjoint(encode(self._backend, marked)):
            # Only the tokenizer sees the token, e.g. because it lowercases the text first.
            marked = _MARK.join(_CHARACTER.findall(text))
        return marked


def encode(backend: Any, text: str) -> list[int]:
    """Return the token ids of a text with marks.

    A tokenizer that starts each text with a space also inserts one at each mark; most do not.
    """
    ids: list[int] = []
    for part in _parts(text):
        ids += backend.encode(part, add_special_tokens=False).ids
    return ids


def _parts(text: str) -> Iterator[str]:
    for part in _ALONE.split(text):
        yield part.replace(_MARK * 2, _MARK)
