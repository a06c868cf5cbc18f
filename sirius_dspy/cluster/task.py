"""What runs on a machine of the cluster: one fine-tuning, whose weights are sent back in pieces."""

from __future__ import annotations

import dataclasses
import queue
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirius_dspy.executors.packing import pack, unpack
from sirius_dspy.redact import redact_error
from sirius_dspy.training.trainers import Trainer, TrainingRequest

PIECE = 64 << 20
"""The most bytes of a file that travel at a time, so that large weights do not have to fit into memory."""


@dataclass(frozen=True)
class Begun:
    """The task has a machine."""


@dataclass(frozen=True)
class Progress:
    """A step of the training; see `ProgressHook`."""

    step: int
    total: int
    loss: float


@dataclass(frozen=True)
class Piece:
    """A part of a file in the folder of the job. The parts of a file come in order."""

    name: str
    """Relative to the folder, with slashes."""
    data: bytes


@dataclass(frozen=True)
class Done:
    """The end: the `model` of the new LM."""

    model: str


@dataclass(frozen=True)
class Failed:
    """The end: the packed error."""

    error: bytes


Message = Begun | Progress | Piece | Done | Failed


def pack_job(trainer: Trainer, request: TrainingRequest) -> bytes:
    """Pack a trainer with its job.

    Raises:
        Exception: Whatever an object raises that cannot be pickled.
    """
    return pack((trainer, dataclasses.replace(request, on_progress=_ignore)))


def _ignore(step: int, total: int, loss: float) -> None:
    """Stands for a hook that stays where it is."""


def run_job(parcel: bytes) -> Iterator[Message]:
    """Train, and yield what happens; Ray runs it as a task whose results come one after another.

    Args:
        parcel: From `pack_job`.
    """
    yield Begun()
    trainer, request = unpack(parcel)
    with tempfile.TemporaryDirectory(prefix="sirius-training-") as scratch:
        workdir = Path(scratch) / request.workdir.name
        news: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=_train, args=(trainer, request, workdir, news.put), daemon=True).start()
        while isinstance(message := news.get(), Progress):
            yield message
        if isinstance(message, Done):
            yield from _pieces(workdir)
        yield message


def _train(trainer: Trainer, request: TrainingRequest, workdir: Path, tell: Any) -> None:
    def on_progress(step: int, total: int, loss: float) -> None:
        tell(Progress(step, total, loss))

    try:
        trainer.check(request.agent, request.lm)  # of this machine
        lm = trainer.train(dataclasses.replace(request, workdir=workdir, on_progress=on_progress))
    except BaseException as error:  # whatever it is belongs to the compile
        tell(Failed(pack(redact_error(error))))
    else:
        tell(Done(lm.model))


def _pieces(folder: Path) -> Iterator[Piece]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as file:
                yield Piece(name, file.read(PIECE))
                while data := file.read(PIECE):
                    yield Piece(name, data)
