"""Finds bugs of a metric or a program early: when all of the first runs raise the same exception at the same place."""

from __future__ import annotations

import sysconfig
import threading
import traceback
from pathlib import Path
from typing import NamedTuple

from dspy.utils.exceptions import DSPyError

from sirius_dspy.errors import MetricError, ProgramError, SiriuSError
from sirius_dspy.running.faults import chain
from sirius_dspy.trajectory import Failure

FIRST_RUNS = 5
"""If so many runs raise alike, and none has ended otherwise, it is a bug."""

METRIC_RAISED = "metric raised "
"""How the kind of a failure begins that the metric raised."""

_MANY = 1_000_000

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_PACKAGE = str(Path(__file__).parent)


class Place(NamedTuple):
    """Where an exception was raised. It travels between processes, which tracebacks do not."""

    file: str
    line: str
    function: str
    source: str


class BugWatch:
    """Watches the first runs on one set of examples, over all stages that run them.

    Until one ends well, no more runs are under way than the verdict needs, so that a bug costs little. A metric has
    proven itself with the first number that it returns, a program with the first prediction.
    """

    def __init__(self) -> None:
        self._raised: list[tuple[Failure, Exception, Place]] = []
        self._kind_and_place: tuple[str, str, str] | None = None
        self._is_proven = False
        self._has_begun = False
        self._has_predicted = False
        self._has_failed_otherwise = False
        self.is_resumed = False
        """Whether runs of an earlier process are among those of the stage, so that the new ones are not all."""
        self._lock = threading.Lock()  # protects all of these: runs end in many threads

    @property
    def is_suspicious(self) -> bool:
        """Whether a bug may have caused the last runs."""
        return bool(self._raised)

    def allowance(self) -> int:
        """How many runs may be under way."""
        with self._lock:
            is_open = self._is_proven or (self._has_begun and not self._raised)
            return _MANY if is_open else max(FIRST_RUNS - len(self._raised), 1)

    def note(self, failure: Failure | None, error: Exception | None, place: Place | None) -> None:
        """Note a run that ended.

        Args:
            failure: Of the run.
            error: What the program or the metric raised.
            place: Where; see `find_place`.

        Raises:
            MetricError: The metric raised in all of the first runs.
            ProgramError: The program did.
        """
        with self._lock:
            self._has_begun = True
            if failure is None:
                self._is_proven = True
                self._raised.clear()
            if self._is_proven or failure is None or error is None or place is None:
                return
            is_metric = failure.kind.startswith(METRIC_RAISED)
            self._has_predicted |= is_metric
            if not is_metric and (self._has_predicted or _is_of_an_lm(error)):
                self._has_failed_otherwise = True
                return
            self._suspect(failure, error, place)

    def conclude(self) -> None:
        """Judge at the end of a stage that had fewer runs than the verdict needs.

        A metric that has raised whenever it was asked has scored nothing. A program has a bug if it raised more than
        once in the same words; in other words each time, it may be what the LM wrote.

        Raises:
            MetricError: The metric raised in all runs.
            ProgramError: The program did.
        """
        with self._lock:
            if self._is_proven or self._has_failed_otherwise or self.is_resumed or not self._raised:
                return
            failure, error, place = self._raised[-1]
            messages = [(failure.kind, failure.message) for failure, _, _ in self._raised]
            if failure.kind.startswith(METRIC_RAISED) or (len(messages) > 1 and len(set(messages)) == 1):
                raise _bug(failure, error, place, len(messages))

    def _suspect(self, failure: Failure, error: Exception, place: Place) -> None:
        kind_and_place = failure.kind, place.file, place.line
        if kind_and_place != self._kind_and_place:
            self._has_failed_otherwise |= bool(self._raised)
            self._raised.clear()
        self._kind_and_place = kind_and_place
        self._raised.append((failure, error, place))
        if len(self._raised) >= FIRST_RUNS:
            raise _bug(failure, error, place, FIRST_RUNS)


def _bug(failure: Failure, error: Exception, place: Place, number: int) -> SiriuSError:
    is_metric = failure.kind.startswith(METRIC_RAISED)
    culprit, kind = ("metric", MetricError) if is_metric else ("program", ProgramError)
    advice = "Correct it, or let it return 0 for an answer that it cannot score" if is_metric else "Correct it"
    bug = kind(
        f"The {culprit} raised the same exception in "
        f"{f'each of the first {number} runs' if number > 1 else 'the only run'}: "
        f"{failure.kind.removeprefix(METRIC_RAISED)}: {failure.message}\n"
        f'  File "{place.file}", line {place.line}, in {place.function}\n    {place.source}\n'
        f"{advice}, and compile again. Nothing was repaired or trained with these runs."
    )
    bug.__cause__ = error
    return bug


def _is_of_an_lm(error: Exception) -> bool:
    """Whether it came of what an LM wrote, or did not write: weak models fail in many runs, and that is no bug."""
    return any(isinstance(cause, DSPyError) for cause in chain(error))


def find_place(error: Exception) -> Place:
    """The last frame of the user's own code, or else the last frame; called where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, _PACKAGE))]
    if not frames:
        return Place("?", "?", "?", "")
    frame = (users or list(frames))[-1]
    return Place(frame.filename, str(frame.lineno), frame.name, frame.line or "")
