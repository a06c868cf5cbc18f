"""An LM with scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sirius_dspy.testing.engine import Engine, EngineLM, Prompt, UnexpectedCallError, function_at, path_of

Answers = Callable[[Prompt], str] | Sequence[str | Exception] | Mapping[str, str]


def chat_reply(**fields: Any) -> str:
    """Write a reply as ChatAdapter parses it.

    Examples:
        >>> print(chat_reply(answer=4))
        [[ ## answer ## ]]
        4
        <BLANKLINE>
        [[ ## completed ## ]]
    """
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


class ScriptedLM(EngineLM):
    """An LM with scripted answers.

    Args:
        answers: A function from `Prompt` to the reply (DSPy treats an exception from it as a failure of the LM); a
            mapping from a part of the last user message to the reply, of which the first matching key is used; or a
            sequence of replies, one per call, in which an exception is raised.
        model: Id of the LM.
        latency_s: Duration of each answer in seconds.
        kwargs: Arguments of `dspy.LM`; the cache is off by default.

    If the script has no answer to a call, it raises `UnexpectedCallError`, which DSPy passes on as `LMUnexpectedError`,
    with the prompt in its message. A saved program stores mappings, sequences of strings, and functions that can be
    imported.

    Examples:
        >>> lm = ScriptedLM({"capital of France": "Paris"})
        >>> lm("What is the capital of France?")
        ['Paris']
        >>> lm.calls
        1
    """

    def __init__(
        self, answers: Answers = (), model: str = "scripted/lm", *, latency_s: float = 0.0, **kwargs: Any
    ) -> None:
        if isinstance(answers, str) or not (callable(answers) or isinstance(answers, Mapping | Sequence)):
            raise TypeError(f"`answers` is {answers!r}, expected a function, a mapping or a list, such as `[text]`.")
        super().__init__(model, _Script(answers, latency_s), **kwargs)

    def dump_state(self) -> dict[str, Any]:
        """Return the state with the script, if it can be stored."""
        script = self.engine
        return {**super().dump_state(), "answers": _plain_script(script.answers), "latency_s": script.latency_s}

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> ScriptedLM:
        """Restore an LM from the result of `dump_state`, at the start of its script."""
        state = {**state, "answers": _revive_script(state.get("answers"))}
        return super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)


class _Script(Engine):
    def __init__(self, answers: Answers = (), latency_s: float = 0.0) -> None:
        super().__init__(latency_s)
        self.answers = answers
        self._unused = iter(answers) if isinstance(answers, Sequence) else iter(())

    def answer(self, prompt: Prompt) -> str:
        if callable(self.answers):
            return self.answers(prompt)
        reply = self._match(prompt) if isinstance(self.answers, Mapping) else self._next()
        if reply is None:
            raise UnexpectedCallError(
                f"Call {len(self.requests)} of the scripted LM {prompt.model!r} has no answer in its script of "
                f"{len(self.answers)}. Add one, or find out why the call was made:\n{prompt.text}"
            )
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _match(self, prompt: Prompt) -> str | None:
        answers: Mapping[str, str] = self.answers  # type: ignore[assignment]  # narrowed by the caller
        return next((reply for text, reply in answers.items() if text in prompt.user), None)

    def _next(self) -> str | Exception | None:
        with self.lock:
            return next(self._unused, None)


def _plain_script(answers: Answers) -> Any:
    if callable(answers):
        return {"function": path_of(answers)}
    if isinstance(answers, Mapping):
        return {"mapping": dict(answers)}
    return {"sequence": [answer for answer in answers if isinstance(answer, str)]}


def _revive_script(plain: Mapping[str, Any] | None) -> Answers:
    kind, value = next(iter((plain or {"sequence": ()}).items()))
    return function_at(value) or () if kind == "function" else value
