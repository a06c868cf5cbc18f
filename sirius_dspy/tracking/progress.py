"""What a compile is doing right now, on stderr, so that stdout stays clean for results.

A terminal has one live line, the stage that is going on; when it has ended, a plain line stays. Curating and training
leave a line for each agent. A file or a pipe gets the plain lines only.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sirius_dspy.tracking.events import (
    CompileEnded,
    CompileStarted,
    Credited,
    Curated,
    Evaluated,
    IterationEnded,
    Repaired,
    RolledOut,
    StageStarted,
    Tracker,
    Trained,
    TrainingProgress,
)
from sirius_dspy.trajectory import Usage, digest


class RichProgress(Tracker):
    """Show the stages of a compile with counts, successes, LM calls, tokens and losses.

    The display opens and closes with the compile. It also closes when the process ends without saying so, and when
    it fails itself, so that the cursor always comes back.

    Args:
        console: Where to write; by default stderr.

    Examples:
        >>> from sirius_dspy.tracking.progress import RichProgress
        >>> progress = RichProgress()  # SiriuS(metric, tracker=progress)
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._lock = threading.RLock()  # protects the stage's counts: fine-tuning jobs report from their own threads
        self._display: _Display | None = None
        self._stage: _Stage | None = None
        self._usage = Usage()

    def on_compile_started(self, event: CompileStarted) -> None:
        """Open the display."""
        self._close()
        self._usage = Usage()
        console = self.console or Console(stderr=True)
        self._display = _LiveDisplay(console) if console.is_terminal else _Display(console)
        atexit.register(self._close)
        again = "Resuming" if event.resumed else "Compiling"
        self._say(f"{again} {_count(len(event.agents), 'agent')} on {_examples(event)}")

    def on_stage_started(self, event: StageStarted) -> None:
        """End the stage before, and begin this one."""
        with self._lock:
            self._end_stage()
            self._stage = _Stage(event.iteration, event.stage, event.total)
            self._show(lambda display, stage: display.stage_started(stage))

    def on_rolled_out(self, event: RolledOut) -> None:
        """Count the run, its success and its price; one that made no call came from DSPy's cache."""
        run = event.trajectory
        is_cached = run.failure is None and bool(run.steps) and not run.usage.calls
        self._advance(succeeded=event.succeeded, usage=run.usage, is_cached=is_cached)

    def on_credited(self, event: Credited) -> None:
        """Count the rerun, its success and its price."""
        self._advance(succeeded=event.succeeded, usage=event.trajectory.usage)

    def on_repaired(self, event: Repaired) -> None:
        """Count the failed run, whether it was repaired, and the price of critique, repair and replays."""
        usage = sum((trajectory.usage for trajectory in event.trajectories), event.repair.usage)
        self._advance(succeeded=event.repair.repaired, usage=usage)

    def on_curated(self, event: Curated) -> None:
        """Count the agent, and leave a line with its rows."""
        dropped = sum(event.dropped.values())
        rows = _count(event.num_rows, "row") + (f", {_count(dropped, 'step')} dropped" if dropped else "")
        self._advance(line=f"{event.agent}: {rows}")

    def on_training_progress(self, event: TrainingProgress) -> None:
        """Show the loss."""
        with self._lock:
            if self._stage is None:
                return
            self._stage.fractions[event.agent] = event.step / event.total if event.total else 0.0
            self._stage.note = f"{event.agent}: step {event.step} of {event.total}, loss {event.loss:.3f}"
            self._show(lambda display, stage: display.stage_changed(stage))

    def on_trained(self, event: Trained) -> None:
        """Count the agent, and leave a line with its losses."""
        with self._lock:
            if self._stage is not None:
                self._stage.fractions.pop(event.agent, None)
            loss = f", loss {event.losses[0]:.3f} to {event.losses[-1]:.3f}" if event.losses else ""
            rows = _count(event.num_rows, "row")
            self._advance(line=f"{event.agent}: {rows}{loss}, {event.seconds:.1f} s")

    def on_evaluated(self, event: Evaluated) -> None:
        """Show the score beside its stage."""
        with self._lock:
            if self._stage is None:
                return
            self._stage.note = f"score {event.score:.3f} ({event.label})"
            self._show(lambda display, stage: display.stage_changed(stage))

    def on_iteration_ended(self, event: IterationEnded) -> None:
        """End the last stage of the iteration."""
        with self._lock:
            self._end_stage()

    def on_compile_ended(self, event: CompileEnded) -> None:
        """End the last stage, say how it went, and give the terminal back."""
        with self._lock:
            self._end_stage()
        seconds = event.results.seconds
        best = "" if event.best_iteration is None else f"best is iteration {event.best_iteration}"
        parts = (f"Compile {event.status} after {seconds:.0f} s", best, _price(self._usage))
        self._say(", ".join(part for part in parts if part))
        self._close()

    def _advance(
        self,
        *,
        succeeded: bool | None = None,
        usage: Usage | None = None,
        is_cached: bool = False,
        line: str = "",
    ) -> None:
        with self._lock:
            if self._stage is None:
                return
            price = usage or Usage()
            self._usage += price
            self._stage.advance(succeeded, price, is_cached=is_cached, line=line)
            if line:
                self._say(f"{self._stage.title}: {line}")
            self._show(lambda display, stage: display.stage_changed(stage))

    def _end_stage(self) -> None:
        self._show(lambda display, stage: display.stage_ended(stage))
        self._stage = None

    def _show(self, change: Callable[[_Display, _Stage], None]) -> None:
        display, stage = self._display, self._stage
        if display is not None and stage is not None:
            self._closing_on_error(lambda: change(display, stage))

    def _say(self, message: str) -> None:
        display = self._display
        if display is not None:
            self._closing_on_error(lambda: display.say(message))

    def _closing_on_error(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:  # Ctrl-C, too: whatever it is goes on, but not with a hidden cursor
            self._close()
            raise

    def _close(self) -> None:
        display, self._display, self._stage = self._display, None, None
        if display is not None:
            atexit.unregister(self._close)
            display.close()


@dataclass
class _Stage:
    """Counts of the stage that is going on."""

    iteration: int
    name: str
    total: int
    done: int = 0
    succeeded: int | None = None
    """`None` where success has no meaning, e.g. while training."""
    usage: Usage = field(default_factory=Usage)
    num_cached: int = 0
    """Runs that DSPy's cache answered."""
    has_lines: bool = False
    """Whether lines of its agents say all there is to say."""
    note: str = ""
    fractions: dict[str, float] = field(default_factory=dict)
    """Agent to the finished share of its fine-tune, of those that are going on."""
    started: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        return f"iteration {self.iteration} {self.name}" if self.iteration else f"student {self.name}"

    @property
    def completed(self) -> float:
        """Units done, with the shares of those going on."""
        return self.done + sum(self.fractions.values())

    @property
    def details(self) -> str:
        succeeded = f"{self.succeeded} succeeded" if self.succeeded is not None else ""
        cached = f"{self.num_cached} from DSPy's cache" if self.num_cached else ""
        return ", ".join(part for part in (succeeded, cached, self.note, _price(self.usage)) if part)

    @property
    def summary(self) -> str:
        parts = [f"{self.done} of {self.total}", self.details, f"{time.monotonic() - self.started:.1f} s"]
        return f"{self.title}: " + ", ".join(part for part in parts if part)

    def advance(self, succeeded: bool | None, usage: Usage, *, is_cached: bool, line: str) -> None:
        self.done += 1
        self.usage += usage
        self.num_cached += is_cached
        self.has_lines |= bool(line)
        if succeeded is not None:
            self.succeeded = (self.succeeded or 0) + succeeded


class _Display:
    """One plain line per stage, when it has ended."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, message: str) -> None:
        self.console.print(Text(message), soft_wrap=True)  # `Text`: an agent's name in brackets is no markup

    def stage_started(self, stage: _Stage) -> None:
        """A stage begins."""

    def stage_changed(self, stage: _Stage) -> None:
        """Its counts changed."""

    def stage_ended(self, stage: _Stage) -> None:
        if not stage.has_lines:
            self.say(stage.summary)

    def close(self) -> None:
        """Nothing will follow."""


class _LiveDisplay(_Display):
    """And below those lines, the stage that is going on."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=console,
            refresh_per_second=5,
            # What is printed meanwhile goes above the bar; but a stdout that is a file must not end up on stderr.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task: TaskID | None = None
        self._progress.start()

    def stage_started(self, stage: _Stage) -> None:
        self._task = self._progress.add_task(stage.title, total=stage.total, details="")

    def stage_changed(self, stage: _Stage) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=stage.completed, details=stage.details)

    def stage_ended(self, stage: _Stage) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        super().stage_ended(stage)

    def close(self) -> None:
        self._progress.stop()


def _examples(event: CompileStarted) -> str:
    """How many there are, and how many of them differ: equal ones are run once."""
    num_distinct = len({digest(example) for example in event.trainset})
    distinct = f", {num_distinct:,} distinct" if 0 < num_distinct < event.num_train else ""
    return _count(event.num_train, "example") + distinct


def _price(usage: Usage) -> str:
    tokens = usage.prompt_tokens + usage.completion_tokens
    return f"{_count(usage.calls, 'LM call')}, {_count(tokens, 'token')}" if usage.calls else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
