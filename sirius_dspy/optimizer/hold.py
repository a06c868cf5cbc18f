"""`hold.json`: what a person asks of a compile that is at work, to pause or to stop. Without the file, it goes on."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sirius_dspy.errors import RunDamagedError, RunDirError, RunMismatchError
from sirius_dspy.files import write_text
from sirius_dspy.optimizer.budget import Account
from sirius_dspy.optimizer.live import LiveFile, is_gone, read_live
from sirius_dspy.optimizer.record_files import advice_on, read_record_file
from sirius_dspy.optimizer.records import Record
from sirius_dspy.running.parallel import POLL_S

HOLD_FILE = "hold.json"

LOOK_S = 0.2
"""Seconds between two looks at the file."""

Wish = Literal["pause", "stop"]


class HoldRecord(Record):
    """What `hold.json` holds."""

    wish: Wish


def read_wish(run_dir: Path) -> Wish | None:
    """What is asked of the compile in a folder; `None` if it may go on.

    Raises:
        RunDamagedError: The file is damaged.
        RunDirError: It cannot be read.
    """
    record = read_record_file(run_dir / HOLD_FILE, "Delete it; the compile then goes on.", HoldRecord)
    return None if record is None else HoldRecord(**record).wish


def ask_for(run_dir: Path, wish: Wish | None) -> None:
    """Ask the compile that is at work in a folder to pause, to stop after its stage, or to go on.

    Args:
        run_dir: Folder of the compile.
        wish: `pause` begins no new run until somebody asks for something else; those in flight end and are kept.
            `stop` ends the compile before its next stage, like Ctrl-C. `None` takes back either.

    Raises:
        RunMismatchError: No compile is at work there.
        RunDamagedError: `live.json` is damaged.
        RunDirError: The folder cannot be used.
    """
    live = read_live(run_dir)
    if live is None or live.state not in ("running", "pausing", "paused") or is_gone(live):
        raise RunMismatchError(
            f"No compile is at work in {str(run_dir)!r}. Pass the `run_dir` of one that has begun and not ended; to go "
            "on with one that has ended, call the same `compile` again."
        )
    try:
        if wish is None:
            (run_dir / HOLD_FILE).unlink(missing_ok=True)
        else:
            write_text(run_dir / HOLD_FILE, json.dumps({"wish": wish}) + "\n")
    except OSError as error:
        raise RunDirError(f"The run directory {str(run_dir)!r} cannot be used: {advice_on(error)}") from error


class Hold:
    """Looks at `hold.json` between runs and between stages. What was asked of an earlier compile is forgotten.

    Args:
        live: Shows that the compile is paused.
        account: Does not count the time of a pause.
    """

    def __init__(self, live: LiveFile, account: Account) -> None:
        self._live = live
        self._account = account
        self._wish: Wish | None = None
        self._looked = 0.0
        self._idle_since: float | None = None
        self._forget()

    def is_held(self, in_flight: int) -> bool:
        """Return whether no new run may begin.

        Args:
            in_flight: Runs under way, which a pause waits for.
        """
        if self._look() != "pause":
            self._idle_since = None
            self._live.show_running()
            return False
        self._live.show_pause(in_flight)
        now = time.monotonic()
        if not in_flight:
            self._account.idle(now - (self._idle_since or now))
        self._idle_since = None if in_flight else now
        return True

    def check(self, iteration: int, stage: str) -> None:
        """Wait before a stage as long as the compile is paused.

        Raises:
            KeyboardInterrupt: It shall stop here.
        """
        self._looked = 0.0
        while self.is_held(0):
            time.sleep(POLL_S)
        if self._wish == "stop":
            self._forget()
            raise KeyboardInterrupt(
                f"The compile was asked to stop, and did so before the stage {stage!r} of iteration {iteration}. Call "
                f"the same `compile` again to resume from {str(self._live.folder)!r}."
            )

    def _look(self) -> Wish | None:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            with suppress(RunDamagedError, RunDirError):  # then what was asked before still holds
                self._wish = read_wish(self._live.folder)
        return self._wish

    def _forget(self) -> None:
        with suppress(OSError):
            (self._live.folder / HOLD_FILE).unlink(missing_ok=True)
