"""Lines that can be pasted into a shell."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from sirius_dspy.mlflow import MLflowTracker


def command(program: str, *arguments: str) -> str:
    """A line for the shell; a program of an environment that is not active gets its path."""
    script = Path(sys.executable).parent / program
    on_path = shutil.which(program)
    if script.exists() and (on_path is None or Path(on_path) != script):
        program = str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)
    return shlex.join([program, *arguments])


def next_steps(ask: str, run_dir: Path, tracker: MLflowTracker | None) -> list[str]:
    """The commands that go on from a finished compile.

    Args:
        ask: The command that asks the trained program.
        run_dir: Of the compile.
        tracker: Where it was tracked.
    """
    lines = [ask, "Write a page about what it did:", command("sirius-dspy", "report", str(run_dir))]
    if tracker is not None and tracker.how_to_open and tracker.run_id:
        where = f"run {tracker.run_id} of experiment {tracker.experiment!r}"
        lines += [f"Open {where} in MLflow:", _format_command(tracker)]
    return lines


def _format_command(tracker: MLflowTracker) -> str:
    how = tracker.how_to_open or ""
    return command(*shlex.split(how)) if how.startswith("mlflow ") else how
