"""Errors of sirius_dspy. Each is also a builtin error, so that a plain `except ValueError` works.

SiriuSError
├── UnpreparedProgramError (ValueError)    the student cannot be compiled as given
│   └── SettingsError                      a setting is of the wrong kind or out of its range
├── GraphError             (ValueError)    the agents do not form a graph, or it was called with other inputs
├── DatasetError           (ValueError)    the examples cannot be used as given
├── MetricError            (ValueError)    the metric did not return a number, or raised in every run
├── AugmenterError         (ValueError)    a repair edits a step that the program does not have
├── RunMismatchError       (ValueError)    a run directory belongs to another compile
├── UnreadableValueError   (ValueError)    a value cannot be stored or restored
├── RunDirError            (OSError)       a run directory cannot be used
├── ResultError            (ValueError)    a stored result has other fields or values than were written
├── RunDamagedError        (ValueError)    a file of a run directory is missing or damaged
├── UnrecordableCallError  (RuntimeError)  the program made LM calls that recording cannot see
├── ReplayDivergedError    (RuntimeError)  a rerun did not repeat its recording
├── NoSuccessError         (RuntimeError)  no run succeeded, so there is nothing to learn from
├── ProgramError           (RuntimeError)  the program raised the same exception in every run
├── RolloutError           (RuntimeError)  the LM failed in a way that affects every example
│   └── OutageError                        its server was down for longer than the compile waits
├── UnfinishedError        (RuntimeError)  some runs did not finish, because the LM or the network failed
├── TimeLimitError         (TimeoutError)  an LM call or a run took longer than its limit
├── PromptTooLongError     (ValueError)    a prompt does not fit into a local model's context window
├── TrainingError          (RuntimeError)  the fine-tuning of an agent failed
│   └── AdapterError                       a server answers with other weights than were trained
├── WorkerError            (RuntimeError)  a process of an executor cannot do its work, or died too often
├── LibraryError           (RuntimeError)  the experience library cannot be used
│   ├── LibraryDamagedError                its file is not a readable library
│   └── LibraryVersionError                it was written by a newer version
├── CheckpointError        (ValueError)    a checkpoint cannot be written or read
├── ExportError            (ValueError)    an agent cannot be written for another tool, or not be uploaded
├── ServerError            (RuntimeError)  the fine-tuning server cannot start as told
├── ModelNotFoundError     (FileNotFoundError)  the weights of a local model cannot be found
├── UnreadableModelError   (ValueError)    the weights of a local model are in a format that is not read
└── MissingDependencyError (ImportError)   an optional package is not installed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sirius_dspy.redact import redact


class SiriuSError(Exception):
    """Base class of all errors that sirius_dspy raises on purpose. Credentials are removed from their messages."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*(redact(item) if isinstance(item, str) else item for item in args))


class UnpreparedProgramError(SiriuSError, ValueError):
    """The student cannot be compiled as given: no LM, an LM or adapter that cannot be trained, a compiled student."""


class SettingsError(UnpreparedProgramError):
    """A setting of a class is of the wrong kind or out of its range."""


class GraphError(SiriuSError, ValueError):
    """The agents of an `AgentGraph` do not form a graph, or it was called with other fields than it declares."""


class DatasetError(SiriuSError, ValueError):
    """The trainset or valset is empty, or an example has no inputs or cannot be stored."""


class MetricError(SiriuSError, ValueError):
    """The metric returned something that is not a finite number, or rewards for unknown agents, or it always raised."""


class AugmenterError(SiriuSError, ValueError):
    """An augmenter returned a repair that does not fit the program."""


class RunMismatchError(SiriuSError, ValueError):
    """The run directory was written by a compile with other settings, data or program."""


class UnreadableValueError(SiriuSError, ValueError):
    """A value cannot be stored so that it reads back equal, or a stored value cannot be restored here."""


class RunDirError(SiriuSError, OSError):
    """The run directory cannot be used: it holds something else, it is not writable, or the disk is full."""


class RunDamagedError(SiriuSError, ValueError):
    """A file of a run directory is missing, cannot be read, or does not hold what was written.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class ResultError(SiriuSError, ValueError):
    """Stored results have other fields or values than were written."""


class UnrecordableCallError(SiriuSError, RuntimeError):
    """The program called LMs where recording cannot see them, so its trajectories would be incomplete."""


class ReplayDivergedError(SiriuSError, RuntimeError):
    """A replay did not repeat its recording up to the edited step, so its reward means nothing."""


class NoSuccessError(SiriuSError, RuntimeError):
    """No rollout and no repair succeeded, so there is nothing to fine-tune on."""


class ProgramError(SiriuSError, RuntimeError):
    """The first runs of the program all raised the same exception at the same place, which is a bug in the program."""


class RolloutError(SiriuSError, RuntimeError):
    """The LM failed in a way that affects every example: credentials, quota, configuration or an outage."""


class OutageError(RolloutError):
    """An LM that had answered before answered no call any more, for longer than `Patience.outage_s`."""


class UnfinishedError(SiriuSError, RuntimeError):
    """Some runs did not finish, because the LM or the network failed. Calling `compile` again repeats them.

    Attributes:
        examples: Content keys of their examples; see `sirius_dspy.trajectory.example_key`.
        reasons: Each failure to the number of runs in which it occurred.
    """

    def __init__(self, message: str, *, examples: Sequence[str] = (), reasons: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.examples = tuple(examples)
        self.reasons = dict(reasons or {})


class TimeLimitError(SiriuSError, TimeoutError):
    """An LM call or a run took longer than its limit."""


class PromptTooLongError(SiriuSError, ValueError):
    """A prompt does not fit into the model's context window; a failure of one example, not of the LM."""


class TrainingError(SiriuSError, RuntimeError):
    """A fine-tuning job failed.

    Attributes:
        agent: Name of the agent whose job failed.
    """

    def __init__(self, message: str, *, agent: str = "") -> None:
        super().__init__(message)
        self.agent = agent


class AdapterError(TrainingError):
    """A server answers with other weights than were trained: with the base, or with an older adapter."""


class WorkerError(SiriuSError, RuntimeError):
    """A process of an executor cannot load or return what it runs, or such processes died too often.

    Attributes:
        is_about_item: Whether one item killed its workers. Then only that item cannot be done.
    """

    def __init__(self, message: str, *, is_about_item: bool = False) -> None:
        super().__init__(message)
        self.is_about_item = is_about_item


class LibraryError(SiriuSError, RuntimeError):
    """The experience library cannot be opened, read or written."""


class LibraryDamagedError(LibraryError):
    """The file is not an experience library, or parts of it are unreadable."""


class LibraryVersionError(LibraryError):
    """The library was written by a newer version of sirius_dspy."""


class CheckpointError(SiriuSError, ValueError):
    """A checkpoint cannot be written, is incomplete, or does not fit the program."""


class ExportError(SiriuSError, ValueError):
    """An agent cannot be written in a format of another tool, or not be uploaded."""


class ServerError(SiriuSError, RuntimeError):
    """The fine-tuning server cannot start: its address, its data folder or its token cannot be used."""


class ModelNotFoundError(SiriuSError, FileNotFoundError):
    """The weights of a local model cannot be found."""


class UnreadableModelError(SiriuSError, ValueError):
    """The weights of a local model are in a format that is not read, or the model cannot chat."""


class MissingDependencyError(SiriuSError, ImportError):
    """An optional package is not installed; the message contains the install command."""
