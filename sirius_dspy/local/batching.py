"""The base of all engines: one scheduler thread answers the calls of many threads in batches."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import ClassVar, Literal, NamedTuple

from sirius_dspy.errors import PromptTooLongError, RolloutError
from sirius_dspy.local.chat import Chat
from sirius_dspy.local.engine import Generation, GenerationOptions, OnText
from sirius_dspy.local.streaming import TextStream, cut_at_stop

QUIET = 0.006
"""Seconds without a new call after which a batch is complete. OpenVINO holds Python's lock during a step, so callers
can
only prepare their calls between steps. Without this wait, one call arrives per step and the batch fills slowly: with 64
threads, that doubled the number of steps and took half as long again."""

PATIENCE = 0.2
"""Maximum number of seconds to wait for a batch."""


class Written(NamedTuple):
    """The raw tokens of one finished request."""

    ids: list[int]
    finish_reason: Literal["stop", "length"]
    log_probs: Sequence[float] = ()
    """Of the tokens after the prompt of a scored call."""


News = SimpleQueue[Sequence[int] | None]
"""New tokens on their way to a caller."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One request on its way through an engine."""

    ids: list[int]
    """The prompt's tokens."""
    max_tokens: int
    """The requested number, or what the context window leaves."""
    options: GenerationOptions
    scored: Sequence[int] = ()
    """A given reply, whose log-probabilities are asked for in place of a generated one."""
    done: Future[Written] = field(default_factory=Future)
    news: News | None = None
    """Where the engine puts new tokens for a caller that streams, and `None` after the last ones."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set by a caller that no longer wants the answer."""

    def drop_if_abandoned(self) -> None:
        """End a call that nobody waits for; only for the scheduler thread."""
        if self.abandoned.is_set() and not self.done.done():
            self.done.set_exception(RolloutError("The caller no longer waits for the answer."))


class BatchingEngine(ABC):
    """Gathers requests for one scheduler thread, the only thread that uses the model.

    A subclass answers calls in `_advance`, keeps the unanswered ones in `_live`, and calls `_start` when it is ready.
    It puts tokens into the `news` of a call as they come, and frees the place of a call that is done, because its
    caller may have gone.
    Any error in that thread reaches every caller as a `RolloutError`.
    """

    gathers_while_busy: ClassVar[bool] = True
    """Whether to wait for further calls between two steps of a batch, too. It is not needed if callers can prepare
    their calls during a step."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.failure: Exception | None = None
        self._live: list[Call] = []  # belongs to the scheduler thread
        self._inbox: list[Call] = []
        self._changed = threading.Condition()  # guards `_inbox` and `failure`
        self._thread: threading.Thread | None = None

    def generate(self, prompt: str, options: GenerationOptions, on_text: OnText | None = None) -> Generation:
        """Continue a prompt; see `Engine.generate`."""
        call = self._call(prompt, options)
        if on_text is not None:
            news: News = SimpleQueue()
            call.done.add_done_callback(lambda done: news.put(None))
            return self._stream(replace(call, news=news), news, on_text)
        written = self._ask(call)
        text = cut_at_stop(self.chat.decode(written.ids), options.stop)
        return Generation(text, len(call.ids), len(written.ids), written.finish_reason)

    def _stream(self, call: Call, news: News, on_text: OnText) -> Generation:
        """Pass the text on while it is generated."""
        stream = TextStream(self.chat.decode, call.options.stop)
        self._submit(call)
        try:
            for ids in iter(news.get, None):
                on_text(stream.add(ids))
        except BaseException:
            call.abandoned.set()
            raise
        written = call.done.result()
        text = cut_at_stop(self.chat.decode(written.ids), call.options.stop)
        on_text(text[len(stream.text) :])
        return Generation(text, len(call.ids), len(written.ids), written.finish_reason)

    def score(self, prompt: str, reply: str) -> list[float]:
        """Score a given reply; see `Engine.score`."""
        ids = self.chat.encode_completion(reply)
        call = self._call(prompt, GenerationOptions(max_tokens=len(ids)))
        if call.max_tokens < len(ids):
            raise PromptTooLongError(
                f"Prompt and reply have {len(call.ids) + len(ids)} tokens; the model reads at most {self.chat.context}."
            )
        return list(self._ask(replace(call, scored=ids)).log_probs)

    def _ask(self, call: Call) -> Written:
        """Hand a call to the scheduler thread, and wait for its result."""
        self._submit(call)
        return call.done.result()

    def _submit(self, call: Call) -> None:
        """Hand a call to the scheduler thread."""
        with self._changed:
            if self.failure is not None:
                raise RolloutError(str(self.failure)) from self.failure
            self._inbox.append(call)
            self._changed.notify()

    def close(self) -> None:
        """End the scheduler thread and free the memory; see `Engine.close`."""
        with self._changed:
            self.failure = self.failure or RolloutError("The engine was closed. Call the LM again to start a new one.")
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    @abstractmethod
    def _advance(self, admitted: list[Call]) -> None:
        """Accept new calls (perhaps none), work for a while, and resolve finished calls."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the model."""

    def _start(self) -> None:
        name = f"{type(self).__name__}-scheduler"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _call(self, prompt: str, options: GenerationOptions) -> Call:
        ids = self.chat.encode(prompt)
        if not ids:
            raise ValueError("The prompt is empty. Pass at least one token.")
        room = self.chat.context - len(ids)
        if room < 1:
            raise PromptTooLongError(
                f"The prompt has {len(ids)} tokens; the model reads at most {self.chat.context}, including its reply. "
                "Shorten the inputs, use fewer demonstrations, or use a model with a longer context."
            )
        return Call(ids, min(options.max_tokens, room), options)

    def _run(self) -> None:
        try:
            num_waiting = 0
            while (admitted := self._take(wait=not self._live, gather=len(self._live) < num_waiting)) is not None:
                num_waiting = len(self._live) + len(admitted)
                for call in (*self._live, *admitted):
                    call.drop_if_abandoned()
                self._advance([call for call in admitted if not call.done.done()])
        except Exception as error:  # engines raise bare RuntimeErrors for everything
            with self._changed:
                self.failure = RolloutError(
                    f"{type(self).__name__} failed while generating: {error}. Call the LM again to start a new one; "
                    "if it fails again, free memory or choose another `device`."
                )
        finally:
            self._abandon()

    def _take(self, *, wait: bool, gather: bool) -> list[Call] | None:
        """Return the new calls; `None` once the engine is closed.

        Args:
            wait: Whether to wait for a call, because there is nothing else to do.
            gather: Whether to wait for a batch, because a caller was just answered and may call again at once.
        """
        with self._changed:
            while wait and not self._inbox and self.failure is None:
                self._changed.wait()
            if (self._inbox or gather) and (wait or self.gathers_while_busy):
                self._gather()
            if self.failure is not None:
                return None
            taken, self._inbox = self._inbox, []
            return taken

    def _gather(self) -> None:
        """Wait for calls that are about to arrive."""
        patience = time.monotonic() + PATIENCE
        while self.failure is None and time.monotonic() < patience and self._changed.wait(QUIET):
            pass

    def _abandon(self) -> None:
        """Release the model, and raise the failure in every caller that still waits."""
        self._release()
        with self._changed:
            waiting = [*self._live, *self._inbox]
            self._live, self._inbox = [], []
        for call in waiting:
            if not call.done.done():
                call.done.set_exception(RolloutError(str(self.failure)))
