"""Reads what a window shows. It takes no lock, and what cannot be read this time is said, not raised."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from sirius_dspy.errors import RunMismatchError, SiriuSError
from sirius_dspy.library.counts import count_repairs, count_runs, last_ids
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.hold import Wish, ask_for, read_wish
from sirius_dspy.optimizer.live import read_live
from sirius_dspy.optimizer.opening import open_library
from sirius_dspy.optimizer.reading import read_results
from sirius_dspy.optimizer.results import AgentResult, CompileResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.report.contents import Report
from sirius_dspy.window.derive import reason_of, repairs_view, score_of, spending_of, stages_of, state_of
from sirius_dspy.window.texts import trajectory_view
from sirius_dspy.window.views import AT_WORK, AgentView, RepairsView, RunsView, TrajectoryView, View

NUM_TRAJECTORIES = 4
"""Runs shown side by side."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Experience:
    """What the library shows."""

    runs: tuple[RunsView, ...] = ()
    repairs: tuple[RepairsView, ...] = ()
    trajectories: tuple[TrajectoryView, ...] = ()


class Window:
    """Looks at the folder of a compile, again and again.

    Args:
        run_dir: The folder.
        library: Where the compile's runs are; by default what the folder has or names.

    Raises:
        RunMismatchError: No compile has begun in the folder.
        RunDamagedError: The file that says which compile it is of is damaged.
    """

    def __init__(self, run_dir: Path | str, library: str | Path | sa.URL | None = None) -> None:
        self.run_dir = RunDir(Path(run_dir))
        self._where = run_dir if library is None else library
        self._library: ExperienceLibrary | None = None
        self._problems: list[str] = []
        identity = self.run_dir.shown_identity()
        if identity is None:
            raise RunMismatchError(
                f"No compile has begun in {str(run_dir)!r}: it has no `run.json`. Pass the `run_dir` of a compile, and "
                "wait until its first stage."
            )
        if library is not None:
            self._open()

    def close(self) -> None:
        """Close the library."""
        if self._library is not None:
            self._library.close()

    def ask_for(self, wish: Wish | None) -> None:
        """Ask the compile to pause, to stop after its stage, or to go on; see `sirius_dspy.optimizer.hold.ask_for`."""
        ask_for(self.run_dir.path, wish)

    def read(self) -> View:
        """Read everything anew."""
        self._problems = []
        path = self.run_dir.path
        results = self._try(lambda: read_results(path))
        live = self._try(lambda: read_live(path))
        wish = self._try(lambda: read_wish(path))
        state = state_of(live, results)
        is_at_work = state in AT_WORK
        iterations = () if results is None else results.iterations
        found = self._experience(results)
        return View(
            run_dir=str(path),
            program=live.program if live is not None else "" if results is None else results.program,
            state=state,
            reason=reason_of(live, results),
            wish=wish if is_at_work else None,
            silent_s=max(0.0, time.time() - live.updated) if live is not None and is_at_work else None,
            note=live.note if live is not None else "",
            in_flight=live.in_flight if live is not None else 0,
            in_percent=results is not None and Report(results).is_in_percent,
            stages=tuple(stages_of(live, results, state)),
            scores=tuple(score_of(entry, results) for entry in iterations),
            runs=found.runs,
            repairs=found.repairs,
            agents=() if results is None else tuple(self._agents(results)),
            spending=tuple(spending_of(live, results)),
            trajectories=found.trajectories,
            problems=tuple(self._problems),
        )

    def _try(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except SiriuSError as error:
            self._problems.append(str(error))
            return None

    # The library

    def _open(self) -> ExperienceLibrary:
        if self._library is None:
            self._library = open_library(self._where)
        return self._library

    def _experience(self, results: CompileResult | None) -> _Experience:
        if results is None or (library := self._try(self._open)) is None:
            return _Experience()
        run, threshold = results.run, results.threshold
        runs = self._try(lambda: count_runs(library, run, threshold)) or ()
        repairs = self._try(lambda: count_repairs(library, run)) or ()
        last = self._try(lambda: [library.get(id) for id in last_ids(library, run, NUM_TRAJECTORIES)]) or ()
        return _Experience(
            tuple(RunsView(item.iteration, item.origin, item.runs, item.succeeded) for item in runs),
            tuple(map(repairs_view, repairs)),
            tuple(trajectory_view(trajectory, threshold) for trajectory in last),
        )

    # The agents

    def _agents(self, results: CompileResult) -> Iterator[AgentView]:
        """The training sets of finished iterations, and those on disk of the one that is going on."""
        for entry in results.iterations:
            for name, agent in entry.agents.items():
                yield AgentView(entry.iteration, name, agent.rows, _ends(agent), entry.promoted.get(name))
        now = len(results.iterations)
        for name in results.agents:
            with suppress(OSError):  # there is none yet
                rows = self.run_dir.training_file(now, name).read_bytes().count(b"\n")
                made = None if results.unfinished is None else results.unfinished.agents.get(name)
                yield AgentView(now, name, rows, None if made is None else _ends(made), None)


def _ends(agent: AgentResult) -> tuple[float | None, float | None] | None:
    """The first and the last loss of a job."""
    return (agent.losses[0], agent.losses[-1]) if agent.losses else None
