"""A text that an LM has answered: sent again, it tells whether the server is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sirius_dspy.dspy_internals import is_managed
from sirius_dspy.running.requests import alias_lm, listen, refuse_empty_body


@dataclass(frozen=True)
class KnownRequest:
    """The text of the user in a request that was answered.

    It goes out alone and with the LM's own settings, so whatever else was special about the call is left out.
    """

    lm: Any
    text: str

    @classmethod
    def of(cls, lm: Any, messages: Sequence[Any]) -> Self:
        """Take the last text of the user from some messages; without any, it is a greeting.

        Args:
            lm: That answered them.
            messages: In OpenAI's format, or whatever else an LM of the user takes.
        """
        asked = [item.get("content") for item in messages if isinstance(item, Mapping) and item.get("role") == "user"]
        texts = [text for text in asked if isinstance(text, str)]
        return cls(lm, texts[-1] if texts else "Hello.")

    def send(self, without: Any) -> None:
        """Send it past the cache, and drop the answer; its tokens are counted where it is sent.

        Args:
            without: A DSPy callback that does not hear of it.

        Raises:
            Exception: Whatever the LM raises.
        """
        with listen(without=without) as listener, refuse_empty_body(self.lm, {}, listener) as outputs:
            outputs += _as_outputs(alias_lm(self.lm)(self.text, **self._settings))

    async def asend(self, without: Any) -> None:
        """The same without blocking the event loop."""
        with listen(without=without) as listener, refuse_empty_body(self.lm, {}, listener) as outputs:
            outputs += _as_outputs(await alias_lm(self.lm).acall(self.text, **self._settings))

    @property
    def _settings(self) -> dict[str, Any]:
        return {"cache": False} if is_managed(self.lm) else {}


def _as_outputs(replies: Any) -> list[dict[str, Any]]:
    """Return what an LM returned as adapters return it: a table for each reply."""
    return [reply if isinstance(reply, dict) else {"text": reply} for reply in replies or ()]
