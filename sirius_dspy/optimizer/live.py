"""`live.json`: where a compile is and what it has spent, for those who look on while it works.

It is only for looking: a compile never reads it, and goes on where it cannot be written.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sirius_dspy.files import write_text
from sirius_dspy.optimizer.budget import Account
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.record_files import read_record_file
from sirius_dspy.optimizer.records import Count, Finite, Record
from sirius_dspy.optimizer.settings import Settings
from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Credited,
    Curated,
    Repaired,
    RolledOut,
    StageStarted,
    Tracker,
    Trained,
    TrainingProgress,
)

LIVE_FILE = "live.json"

WRITE_S = 1.0
"""Seconds between two writes within a stage."""

LiveState = Literal["running", "pausing", "paused", "finished", "failed", "interrupted"]


class PlannedStage(Record):
    """A stage that a compile comes to, unless it ends early."""

    iteration: Count
    stage: str


class Live(Record):
    """What `live.json` holds."""

    run: str
    """Id of the compile."""
    program: str
    """Class of the program."""
    state: LiveState = "running"
    """`pausing` until the runs in flight have ended."""
    reason: str = ""
    """Why it ended, where that is not plain."""
    host: str
    process: int
    updated: Finite
    """Seconds since the epoch."""
    stages: list[PlannedStage]
    position: int | None = None
    """Index of the stage that is going on; `None` before the first."""
    done: Count = 0
    total: Count = 0
    """Units of work of the stage: runs, failed runs, agents; 0 if it has not said."""
    note: str = ""
    """The last step of a fine-tuning job."""
    in_flight: Count = 0
    """Runs that a pause waits for."""
    calls: Count = 0
    tokens: Count = 0
    usd: Finite | None = None
    """`None` if a price is unknown."""
    seconds: Finite = 0.0
    """Wall time, without pauses."""
    limits: dict[str, float]
    """The budget: `calls`, `tokens`, `usd` and `seconds`, those that are set."""


def read_live(run_dir: Path) -> Live | None:
    """Read `live.json`; `None` if there is none.

    Raises:
        RunDamagedError: It is damaged.
        RunDirError: It cannot be read.
    """
    record = read_record_file(run_dir / LIVE_FILE, "Delete it; the next stage writes it anew.", Live)
    return None if record is None else Live(**record)


def is_gone(live: Live) -> bool:
    """Whether the process is known to have ended; on another machine, nobody knows."""
    if live.host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(live.process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def planned_stages(settings: Settings) -> list[PlannedStage]:
    """The stages of a compile, in their order."""
    warm = ("curate", "train", "evaluate") if settings.collect.warm_start else ()
    credit = () if settings.credit is None else ("credit",)
    repair = () if settings.augmenter is None else ("repair",)
    each = ("collect", *credit, *repair, "curate", "train", "evaluate")
    iterations = {0: ("evaluate", *warm), **dict.fromkeys(range(1, settings.iterations + 1), each)}
    return [PlannedStage(iteration=number, stage=name) for number, names in iterations.items() for name in names]


class LiveFile(Tracker):
    """Writes `live.json` at changes of stage and state, and at most once a second in between.

    Args:
        plan: Of the compile.
        run: Its id.
        account: What it spends.
    """

    def __init__(self, plan: Plan, run: str, account: Account) -> None:
        self.folder = plan.run_dir.path
        self._account = account
        self._lock = threading.RLock()  # protects all below: fine-tuning jobs report from their own threads
        self._written = 0.0
        self._live = Live(
            run=run,
            program=type(plan.student).__name__,
            host=socket.gethostname(),
            process=os.getpid(),
            updated=time.time(),
            stages=planned_stages(plan.settings),
            limits=account.budget.limits,
        )

    def begin_stage(self, iteration: int, stage: str) -> None:
        """A stage begins, or is looked through for what is left of it."""
        after = 0 if self._live.position is None else self._live.position + 1
        places = [
            place
            for place, planned in enumerate(self._live.stages)
            if place >= after and (planned.iteration, planned.stage) == (iteration, stage)
        ]
        if places:
            self._change(position=places[0], done=0, total=0, note="")

    def show_pause(self, in_flight: int) -> None:
        """The compile is paused, or will be when the runs in flight have ended."""
        state = "pausing" if in_flight else "paused"
        if (state, in_flight) != (self._live.state, self._live.in_flight):
            self._change(state=state, in_flight=in_flight)
        self.beat()

    def show_running(self) -> None:
        """The compile is at work; call it often, so that others see a sign of life."""
        if self._live.state in ("pausing", "paused"):
            self._change(state="running", in_flight=0)
        self.beat()

    def beat(self) -> None:
        """Write the file, unless that was done within the last second."""
        if time.monotonic() - self._written >= WRITE_S:
            self._change()

    def _change(self, **values: object) -> None:
        with self._lock:
            spent = self._account.spent()
            numbers = {name: getattr(spent, name) for name in ("calls", "tokens", "usd", "seconds")}
            self._live = self._live.model_copy(update={**values, **numbers, "updated": time.time()})
            self._written = time.monotonic()
            with suppress(OSError):  # a full disk ends a compile where a result is lost, not here
                write_text(self.folder / LIVE_FILE, self._live.model_dump_json(indent=2) + "\n")

    def _count(self, note: str | None = None) -> None:
        with self._lock:
            values = {"done": self._live.done + 1, "note": self._live.note if note is None else note}
            self._live = self._live.model_copy(update=values)
            self.beat()

    # Events

    def on_compile_started(self, event: CompileStarted) -> None:
        """Write the file for the first time."""
        self._change()

    def on_stage_started(self, event: StageStarted) -> None:
        """Note the units of work; an evaluation has several such beginnings, one for each choice of weights."""
        self._change(done=0, total=event.total)

    def on_rolled_out(self, event: RolledOut) -> None:
        """Count a run."""
        self._count()

    def on_credited(self, event: Credited) -> None:
        """Count a rerun."""
        self._count()

    def on_repaired(self, event: Repaired) -> None:
        """Count a failed run."""
        self._count()

    def on_curated(self, event: Curated) -> None:
        """Count an agent."""
        self._count()

    def on_training_progress(self, event: TrainingProgress) -> None:
        """Note the step of a fine-tuning job."""
        with self._lock:
            note = f"{event.agent}: step {event.step} of {event.total}, loss {event.loss:.3f}"
            self._live = self._live.model_copy(update={"note": note})
            self.beat()

    def on_trained(self, event: Trained) -> None:
        """Count an agent."""
        self._count(note="")

    def on_compile_ended(self, event: CompileEnded) -> None:
        """Write the file for the last time."""
        self._change(state=event.status, reason=event.error or event.results.reason, in_flight=0, note="")
