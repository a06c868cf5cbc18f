"""One recorded run of a program, and how its LMs were asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from sirius_dspy.errors import UnfinishedError
from sirius_dspy.running.faults import (
    describe_error,
    fault_of,
    fault_of_call,
    raise_if_systemic,
    raise_sirius_error,
)
from sirius_dspy.trajectory import Failure, Step


@dataclass(frozen=True)
class Sampling:
    """How the LMs are asked during one run."""

    key: str = ""
    """Names the sample, e.g. `seed/iteration/example/sample`. Each call gets a rollout id derived from it, so repeated
    calls differ, and the same key repeats them (from DSPy's cache, or through the seed of a local engine). Empty: the
    calls stay as the program makes them."""
    lm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Added to every live call, e.g. `{"temperature": 1.0}`."""
    demos: Mapping[str, Sequence[dspy.Example]] = field(default_factory=dict)
    """Predictor name to demonstrations shown instead of the predictor's own."""


@dataclass(frozen=True)
class Recording:
    """One run of a program: the steps as plain values, and the live objects that a metric needs."""

    steps: tuple[Step, ...]
    prediction: Any
    """What the program returned; `None` if it raised."""
    trace: list[Any]
    """DSPy's own trace: (predictor, inputs, prediction) of every call that succeeded."""
    error: Exception | None
    """What the program raised."""
    seconds: float
    edited: int | None = None
    """Position of the edited step, in a replay."""
    faults: tuple[Exception, ...] = ()
    """What live calls raised, also where the program caught it."""

    @property
    def failure(self) -> Failure | None:
        """The error as a plain value."""
        return None if self.error is None else describe_error(self.error)

    def check_ended(self) -> None:
        """Refuse a run that did not end because of its LM, also where the program caught what the LM raised.

        Raises:
            RolloutError: An LM refused for lack of credentials, credit or configuration.
            UnfinishedError: The LM or the network failed; `attempt_all` makes a `Broken` of it.
            SiriuSError: The program passed on an error of this package.
        """
        raise_sirius_error(self.error)
        faults = [(fault_of_call(error), error) for error in self.faults]
        if self.error is not None:
            faults.append((fault_of(self.error), self.error))
        for _, error in faults:
            raise_if_systemic(error)
        for fault, error in faults:
            if fault == "transient":
                failure = describe_error(error)
                raise UnfinishedError(
                    f"The run did not end, because the LM or the network failed: {failure.kind}: {failure.message}"
                ) from error
