"""The adapter that stands in for the active one during a recorded run, and tells the tape about every call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.running.requests import Listener, Request, alias_lm, listen, prompt_text, refuse_empty_body
from sirius_dspy.running.retries import Retries
from sirius_dspy.running.tape import Call, Tape


class TapAdapter:
    """Passes calls on to the active adapter and tells the tape about them.

    It subclasses no adapter, so that everything but a call goes to the active one. It can be built without arguments,
    because dspy.Refine builds one of the active adapter's type; such a one passes everything on.

    Args:
        base: The active adapter.
        tape: Of the run.
    """

    def __init__(self, base: Adapter | None = None, tape: Tape | None = None) -> None:
        self.base = base or dspy.ChatAdapter()
        self.tape = tape

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Answer a call from the tape, or ask the LM."""
        if self.tape is None:
            return self.base(lm, lm_kwargs, signature, demos, inputs)
        call = self.tape.begin(lm, signature, inputs, demos)
        with self._write(call) as written:
            if (outputs := self.tape.canned_outputs(call, signature)) is None:
                demos, kwargs = self._prepare(call, demos, lm_kwargs)
                with self._listen(call, signature, inputs) as listener:

                    def ask() -> list[dict[str, Any]]:
                        with refuse_empty_body(lm, kwargs, listener) as completions:
                            completions += self.base(alias_lm(lm), {**kwargs}, signature, demos, inputs)
                        return completions

                    outputs = self._retries(lm).call(ask)
            written.append(outputs)
        return outputs

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Like `__call__`, awaiting the LM."""
        if self.tape is None:
            return await self.base.acall(lm, lm_kwargs, signature, demos, inputs)
        call = self.tape.begin(lm, signature, inputs, demos)
        with self._write(call) as written:
            if (outputs := self.tape.canned_outputs(call, signature)) is None:
                demos, kwargs = self._prepare(call, demos, lm_kwargs)
                with self._listen(call, signature, inputs) as listener:

                    async def ask() -> list[dict[str, Any]]:
                        with refuse_empty_body(lm, kwargs, listener) as completions:
                            completions += await self.base.acall(alias_lm(lm), {**kwargs}, signature, demos, inputs)
                        return completions

                    outputs = await self._retries(lm).acall(ask)
            written.append(outputs)
        return outputs

    def _retries(self, lm: Any) -> Retries:
        return Retries(None if self.tape is None else self.tape.watch, lm)

    def _prepare(self, call: Call, demos: list[Any], lm_kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if self.tape is None:
            return demos, lm_kwargs
        shown = list(self.tape.demos(call, demos))
        call.num_demos = len(shown)
        return shown, self.tape.lm_kwargs(call, lm_kwargs)

    @contextmanager
    def _listen(self, call: Call, signature: Any, inputs: Mapping[str, Any]) -> Iterator[Listener]:
        """Note what was sent, also where the reply does not parse: a repair answers it again."""
        with listen(without=self.tape and self.tape.watch) as listener:
            try:
                yield listener
            finally:
                call.usage = listener.usage
                if listener.requests:
                    call.finish = listener.requests[-1].finish
                    call.prompt = self._prompt(listener.requests[0], call, signature, inputs)

    def _prompt(self, asked: Request, call: Call, signature: Any, inputs: Mapping[str, Any]) -> str | None:
        """The prompt of a training row: the first request of the call, which is what inference sends, too.

        Demonstrations are cut out of it: what is left must be what the adapter writes without them, or there is no such
        prompt.
        """
        if asked.has_tools:
            return None
        if not call.num_demos:
            return prompt_text(asked.messages)
        bare = self.base.format(signature, [], dict(inputs))
        sent = list(asked.messages)
        kept = sent[:1] + sent[len(sent) - len(bare) + 1 :]
        return prompt_text(bare) if len(bare) > 1 and kept == bare else None

    @contextmanager
    def _write(self, call: Call) -> Iterator[list[Any]]:
        """Write the call down when it ends, whichever way."""
        outputs: list[Any] = []
        error: Exception | None = None
        try:
            yield outputs
        except Exception as raised:
            error = raised
            raise
        finally:
            if self.tape is not None and (outputs or error):
                self.tape.end(call, outputs[0] if outputs else None, error)

    def __getattr__(self, name: str) -> Any:
        """Whatever else an adapter has: modules such as dspy.ReAct format through the active one."""
        if name.startswith("__") or "base" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base, name)
