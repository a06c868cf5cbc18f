"""Chooses the LM for a predictor: shared weights with its own settings, unless `forward` selects another LM."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy
from dspy.clients.provider import Provider
from dspy.utils.callback import BaseCallback

from sirius_dspy.errors import TrainingError

logger = logging.getLogger(__name__)

_CONNECTION = frozenset({"api_base", "base_url", "api_key", "api_version"})
"""LM arguments that say where weights are served. The trainer sets them for trained weights."""

_OUTSIDE = "sirius_dspy_outside_lm"
"""DSPy setting with the default LM at the time of the program's call, before `forward` could select another."""


def keep_settings(trained: dspy.LM, base: dspy.LM, previous: dspy.LM) -> dspy.LM:
    """Return new weights with the settings that a predictor's LM had before.

    Args:
        trained: The LM with the new weights, as returned by training.
        base: The LM that was trained. A setting that it shares with `previous` is left as it is in `trained`.
        previous: The predictor's LM before training, with the same weights as `base`.
    """
    if previous is base:
        return trained
    tuned = trained.copy()
    for name in {*previous.kwargs, *base.kwargs} - _CONNECTION:
        if name not in previous.kwargs:
            tuned.kwargs.pop(name, None)
        elif name not in base.kwargs or previous.kwargs[name] != base.kwargs[name]:
            tuned.kwargs[name] = previous.kwargs[name]
    for name in ("cache", "num_retries", "use_developer_role"):
        if getattr(previous, name, None) != getattr(base, name, None):
            setattr(tuned, name, getattr(previous, name))
    return tuned


# LMs that `forward` selects


def note_outside_lm() -> AbstractContextManager[None]:
    """Return a context for the call of a program that notes DSPy's current LM, which `forward` did not select."""
    return dspy.context(**{_OUTSIDE: dspy.settings.lm})


def find_chosen_lm() -> Any:
    """Return the LM that `forward` selected with `dspy.context(lm=...)`, or `None`."""
    if _OUTSIDE not in dspy.settings or dspy.settings.lm is dspy.settings[_OUTSIDE]:
        return None
    return dspy.settings.lm


def follow_context(predictor: dspy.Predict) -> None:
    """Let a predictor use the LM that `forward` selects with `dspy.context`, although it has its own LM.

    A predictor without an LM follows the context. Once it has trained weights, DSPy would always call those.
    """
    vars(predictor).update({name: _Following(predictor, name) for name in _Following.METHODS})


def follow_no_context(predictor: dspy.Predict) -> None:
    """Undo `follow_context`."""
    for name in _Following.METHODS:
        vars(predictor).pop(name, None)


@dataclass(frozen=True, eq=False)
class _Following:
    """Replaces a predictor's `forward` or `aforward`."""

    METHODS = ("forward", "aforward")

    predictor: dspy.Predict
    name: Literal["forward", "aforward"] | str

    def __call__(self, **inputs: Any) -> Any:
        chosen = find_chosen_lm()
        if chosen is not None:
            inputs.setdefault("lm", chosen)
        return getattr(type(self.predictor), self.name)(self.predictor, **inputs)


class OutsideLMCallback(BaseCallback):
    """Notes DSPy's LM at each call of a program, for predictors that follow the context."""

    def __init__(self) -> None:
        self._open: dict[str, AbstractContextManager[None]] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Open the context; DSPy calls this in the context of the call."""
        context = note_outside_lm()
        context.__enter__()
        self._open[call_id] = context

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Close the context; DSPy calls this in the same context."""
        if (context := self._open.pop(call_id, None)) is not None:
            context.__exit__(None, None, None)


# LMs that must be launched or loaded


def load_together(lms: Iterable[Any]) -> None:
    """Load weights side by side that their providers would load one after the other, each at its first call.

    An error is not raised here, but by the call that needs the weights.
    """
    own = {lm.model: lm for lm in lms if loads_when_asked(lm)}
    if len(own) < 2:
        return

    def load(lm: dspy.LM) -> None:
        try:
            lm.launch()
        except Exception:
            logger.debug("The weights %r could not be loaded ahead of their first call.", lm.model, exc_info=True)

    threads = ThreadPoolExecutor(len(own), thread_name_prefix="load")
    try:
        wait([threads.submit(load, lm) for lm in own.values()])
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # an interrupt need not wait


@dataclass
class Launches:
    """The LMs that a compile has launched, by model id, for providers that must be launched before they answer.

    `launch` may be called for an LM that is already running, and does nothing if its provider needs no launch.
    """

    running: dict[str, dspy.LM] = field(default_factory=dict)

    def launch(self, agent: str, lm: dspy.LM) -> dspy.LM:
        """Return the LM, launched if necessary.

        Raises:
            TrainingError: Its provider could not launch it.
        """
        if lm.model not in self.running and needs_launch(lm):
            # A copy, because `launch` writes the server's address and process into the LM, and training that starts
            # from these weights would use them. The process of a server for the base does not belong to it either.
            launched = lm.copy()
            vars(launched).pop("process", None)
            try:
                with redirect_stdout(sys.stderr):  # DSPy prints the server's log; stdout is for results
                    launched.launch()
            except Exception as error:
                raise TrainingError(
                    f"The new weights {lm.model!r} of agent {agent!r} are trained, but could not be launched: {error} "
                    "Fix the server, then run the same `compile` again to resume.",
                    agent=agent,
                ) from error
            self.running[lm.model] = launched
        return self.running.get(lm.model, lm)

    def keep(self, models: Collection[str]) -> None:
        """Kill all launched LMs except these."""
        for model in [model for model in self.running if model not in models]:
            lm = self.running.pop(model)
            try:
                lm.kill()
            except Exception:
                logger.warning("The LM %r could not be killed; its server may still run.", model, exc_info=True)


def loads_when_asked(lm: Any) -> bool:
    """Return whether the LM runs inside this process, where its provider loads the weights at the first call."""
    return bool(getattr(getattr(lm, "provider", None), "loads_when_asked", False))


def needs_launch(lm: dspy.LM) -> bool:
    """Return whether an LM's provider defines `launch` and does not declare that it loads weights at the first call."""
    provider = getattr(lm, "provider", None)
    if provider is None or loads_when_asked(lm):
        return False
    launch: Callable[..., Any] | None = getattr(provider, "launch", None)
    return launch is not None and launch is not Provider.launch
