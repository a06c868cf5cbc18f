"""Text from tokens as they come: what later tokens cannot change any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CUT = "\ufffd"
"""What a tokenizer writes in place of bytes that are no whole character, perhaps because the rest is still to come."""


class TextStream:
    """Gathers tokens, and tells the text that is certain.

    Args:
        decode: Returns the text of tokens.
        stops: The text ends before the first of these.

    Attributes:
        text: What was told so far.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: tuple[str, ...]) -> None:
        self.text = ""
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens, and return what has become certain with them."""
        self._ids += ids
        text = _certain(self._decode(self._ids), self._stops)
        piece = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += piece
        return piece


def cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return the text before the first stop string."""
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def _certain(text: str, stops: tuple[str, ...]) -> str:
    """Return a text without half a character, and without what may be the beginning of a stop string."""
    text = cut_at_stop(text, stops).rstrip(_CUT)
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return text[: len(text) - max(begun, default=0)]
