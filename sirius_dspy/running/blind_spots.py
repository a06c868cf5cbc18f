"""Predictor calls that recording cannot see, and calls of predictors that no training can reach."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from sirius_dspy.errors import UnrecordableCallError

_NOT_THE_USERS = frozenset({"dspy", "sirius_dspy", "asyncio", "concurrent", "threading", "contextlib", "contextvars"})
"""Packages whose frames stand between a user's line and the call of a predictor."""


def last_calls(predictors: Mapping[str, dspy.Predict]) -> dict[str, Any]:
    """The last entry of each predictor's history, for `refuse_raw_threads`."""
    return {name: predictor.history[-1:] for name, predictor in predictors.items()}


def refuse_raw_threads(predictors: Mapping[str, dspy.Predict], before: Mapping[str, Any]) -> None:
    """Refuse calls outside the context: a recorded call leaves no history, since the context turns it off.

    Raises:
        UnrecordableCallError: A predictor's history has grown since `last_calls`.
    """
    for name, now in last_calls(predictors).items():
        if now and (not before[name] or before[name][0] is not now[0]):
            raise UnrecordableCallError(
                f"Predictor {name!r} was called outside the recorded context, as from a thread that the program "
                "starts itself, or by other code that uses the same program at the same time. Call predictors in "
                "parallel with `dspy.Parallel`, or start threads with `contextvars.copy_context().run`."
            )


@contextmanager
def refuse_late_calls(predictors: Mapping[str, dspy.Predict]) -> Iterator[None]:
    """The context of a metric, in which predictors of the run that it scores must not be called any more.

    Raises:
        UnrecordableCallError: One was.
    """
    late = _LateCalls(predictors)
    with dspy.context(callbacks=[*dspy.settings.callbacks, late]):
        yield
    if late.name:
        raise UnrecordableCallError(
            f"Predictor {late.name!r} was called after the run had ended, while the metric read its result: the "
            "program returns a generator, `map` or function that calls it, so the call was not recorded. Return what "
            "is finished, such as `list(...)`."
        )


class _LateCalls(BaseCallback):
    """Notes one of the predictors that are called."""

    def __init__(self, predictors: Mapping[str, dspy.Predict]) -> None:
        self._names = {id(predictor): name for name, predictor in predictors.items()}
        self.name = ""

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """DSPy calls this."""
        self.name = self._names.get(id(instance), self.name)


def refuse_own_adapters(traced: Counter[str], recorded: Counter[str]) -> None:
    """Refuse calls that are in DSPy's trace, but did not come through the adapter of the recording.

    Args:
        traced: Calls that succeeded, by predictor.
        recorded: Those that were recorded.

    Raises:
        UnrecordableCallError: There are such calls.
    """
    for name, unseen in (traced - recorded).items():
        raise UnrecordableCallError(
            f"Predictor {name!r} was called {unseen} times under an adapter that the program sets itself. Take "
            "`dspy.context(adapter=...)` out of `forward` and set the adapter with `dspy.configure`."
        )


class Strangers:
    """Collects the calls of predictors that are no part of the program, and warns of them after the run.

    Args:
        program: The program that runs.
    """

    def __init__(self, program: dspy.Module) -> None:
        self._program = program
        self._places: dict[str, tuple[str, int, dict[str, Any]]] = {}

    def note(self, modules: Sequence[Any]) -> None:
        """Note where such a predictor is called; DSPy's own modules may have some.

        Args:
            modules: Those that are being called, outermost first.
        """
        parts = {id(module) for _, module in self._program.named_sub_modules()}
        *callers, called = modules or [None]
        caller = next((module for module in reversed(callers) if id(module) in parts), self._program)
        if id(called) in parts or type(caller).__module__.partition(".")[0] == "dspy":
            return  # part of a module that is compiled already, or advice that dspy.Refine asks for
        frame = _users_frame()
        where = type(caller).__qualname__ if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        message = (
            f"{where} calls a `dspy.{type(called).__name__}` that is no attribute of the program, so it is neither "
            "trained nor repaired. Keep it as an attribute of one of the program's modules."
        )
        place = (__file__, 0, {}) if frame is None else (frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
        self._places[message] = place

    def warn(self) -> None:
        """Warn at the user's own lines, so that Python shows each once; after the run, which a warning must not end."""
        for message, (file, line, names) in self._places.items():
            registry = names.setdefault("__warningregistry__", {})
            warnings.warn_explicit(message, UserWarning, file, line, registry=registry)


def _users_frame() -> FrameType | None:
    """The innermost frame that is neither DSPy's nor ours; there is none in a thread that DSPy started."""
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_USERS:
        frame = frame.f_back
    return frame
