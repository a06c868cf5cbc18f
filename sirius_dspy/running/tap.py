"""The adapter that stands in for the active one during a recorded run, and tells the tape about every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dspy
from dspy.adapters.base import Adapter

from sirius_dspy.dspy_internals import sent_signature
from sirius_dspy.running.direct import direct_lm
from sirius_dspy.running.requests import Listener, Request, alias_lm, listen, refuse_empty_body
from sirius_dspy.running.retries import Retries
from sirius_dspy.running.tape import Tape

Outputs = list[dict[str, Any]]


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
    ) -> Outputs:
        """Answer a call from the tape, or ask the LM."""
        if self.tape is None:
            return self.base(lm, lm_kwargs, signature, demos, inputs)
        tapped = _TappedCall(self.base, self.tape, lm, signature, demos, inputs)
        with tapped.write_down() as written:
            outputs = self.tape.canned_outputs(tapped.call, signature)
            outputs = tapped.ask(lm_kwargs) if outputs is None else outputs
            written.append(outputs)
        return outputs

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> Outputs:
        """Like `__call__`, awaiting the LM."""
        if self.tape is None:
            return await self.base.acall(lm, lm_kwargs, signature, demos, inputs)
        tapped = _TappedCall(self.base, self.tape, lm, signature, demos, inputs)
        with tapped.write_down() as written:
            outputs = self.tape.canned_outputs(tapped.call, signature)
            outputs = await tapped.aask(lm_kwargs) if outputs is None else outputs
            written.append(outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        """Whatever else an adapter has: modules such as dspy.ReAct format through the active one."""
        if name.startswith("__") or "base" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base, name)


class _TappedCall:
    """One call on its way through the tap."""

    def __init__(self, base: Adapter, tape: Tape, lm: Any, signature: Any, demos: list[Any], inputs: Any) -> None:
        self.base = base
        self.tape = tape
        self.lm = lm
        self.signature = signature
        self.inputs = inputs
        self.call = tape.begin(lm, signature, inputs, demos)
        self._demos = demos

    @contextmanager
    def write_down(self) -> Iterator[list[Outputs]]:
        """Write the call down when it ends, whichever way; the caller appends the outputs."""
        written: list[Outputs] = []
        error: Exception | None = None
        try:
            yield written
        except Exception as raised:
            error = raised
            raise
        finally:
            if written or error:
                self.tape.end(self.call, written[0] if written else None, error)

    def ask(self, lm_kwargs: dict[str, Any]) -> Outputs:
        """Ask the LM, again while it fails for the moment."""
        demos, kwargs = self._prepare(lm_kwargs)
        if (kept := self.tape.kept_outputs(self.call, self.signature)) is not None:
            return kept
        with self._listen() as listener:

            def send() -> Outputs:
                with refuse_empty_body(self.lm, kwargs, listener) as completions:
                    lm = alias_lm(direct_lm(self.lm, kwargs, self.inputs))
                    completions += self.base(lm, {**kwargs}, self.signature, demos, self.inputs)
                return completions

            retries = Retries(self.tape.watch, self.lm)
            outputs = retries.call(send)
            if listener.requests:
                retries.remember(listener.requests[0].prompt.messages)
            return outputs

    async def aask(self, lm_kwargs: dict[str, Any]) -> Outputs:
        """Like `ask`, awaiting the LM."""
        demos, kwargs = self._prepare(lm_kwargs)
        if (kept := self.tape.kept_outputs(self.call, self.signature)) is not None:
            return kept
        with self._listen() as listener:

            async def send() -> Outputs:
                with refuse_empty_body(self.lm, kwargs, listener) as completions:
                    lm = alias_lm(self.lm)
                    completions += await self.base.acall(lm, {**kwargs}, self.signature, demos, self.inputs)
                return completions

            retries = Retries(self.tape.watch, self.lm)
            outputs = await retries.acall(send)
            if listener.requests:
                retries.remember(listener.requests[0].prompt.messages)
            return outputs

    def _prepare(self, lm_kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        demos, kwargs = list(self.tape.demos(self.call, self._demos)), self.tape.lm_kwargs(self.call, lm_kwargs)
        self.tape.prepare(self.call, kwargs, demos)
        return demos, kwargs

    @contextmanager
    def _listen(self) -> Iterator[Listener]:
        """Note what was sent, also where the reply does not parse: a repair answers it again."""
        with listen(without=self.tape.watch) as listener:
            try:
                yield listener
            finally:
                self.call.usage = listener.usage
                if listener.requests:
                    self.call.finish = listener.requests[-1].finish
                    self.call.prompt = self._training_prompt(listener.requests[0])

    def _training_prompt(self, request: Request) -> str | None:
        """The prompt of a training row: the first request of the call, which is what inference sends, too.

        Demonstrations are cut out of it: what is left must be what the adapter writes without them, or there is no such
        prompt.
        """
        if request.is_forced:
            return None
        prompt = request.prompt
        if not self.call.num_demos:
            return prompt.text
        signature = sent_signature(self.base, self.lm, self.signature, self.inputs) if prompt.tools else self.signature
        bare = self.base.format(signature, [], dict(self.inputs))
        kept = [*prompt.messages[:1], *prompt.messages[len(prompt.messages) - len(bare) + 1 :]]
        return replace(prompt, messages=bare).text if len(bare) > 1 and kept == bare else None
