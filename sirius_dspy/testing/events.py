"""Events of a small compile, for tests of trackers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sirius_dspy.optimizer.results import IterationResult
from sirius_dspy.testing.results import make_iteration, make_result
from sirius_dspy.testing.trainer import ROWS
from sirius_dspy.tracking import events
from sirius_dspy.trajectory import Attempt, Failure, Repair, Step, Trajectory, digest

Event = tuple[str, Any]
"""Name of a hook, and the event that it receives."""


def compile_events(
    run_dir: Path, *, run: str = "run-1", status: str = "finished", resumed: bool = False
) -> Iterator[Event]:
    """Yield the events of a compile of one iteration with two agents, in order; the files that they name exist.

    Args:
        run_dir: Run directory; it is created with the files of a compile.
        run: Id of the compile.
        status: How the compile ends: `finished`, `failed` or `interrupted`.
        resumed: Whether it resumes an earlier compile.
    """
    agents = {"analyst": ("analyst",), "solver.predict": ("solver.predict", "helpers[0]")}
    lms = dict.fromkeys(agents, "toy/base")
    yield "on_compile_started", _start_event(run_dir, run, resumed, agents, lms)
    yield from _evaluation(0, 0.0)
    yield from _collection(run)
    for agent in agents:
        yield from _train_events(run_dir, agent)
        lms[agent] = f"toy/{agent}+1"
    yield from _evaluation(1, 0.5)
    metrics = {"val/score": 0.5, "collect/success_rate": 0.5, "repair/repaired": 1.0}
    iteration = make_iteration(1, 0.5, num_val=2, lms=dict(lms), metrics=metrics)
    yield "on_iteration_ended", events.IterationEnded(iteration)
    yield "on_compile_ended", _end_event(status, run, iteration)


def _start_event(
    run_dir: Path, run: str, resumed: bool, agents: Mapping[str, Sequence[str]], lms: Mapping[str, str]
) -> events.CompileStarted:
    run_dir.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(run_dir / "library.db")) as library:
        library.execute("CREATE TABLE IF NOT EXISTS trajectories (id TEXT)")
    return events.CompileStarted(
        run=run,
        program="Team",
        run_dir=run_dir,
        library_url=f"sqlite:///{run_dir / 'library.db'}",
        params={"iterations": 1, "threshold": 1.0, "mixed": False, "run_dir": None},
        agents=agents,
        lms=dict(lms),
        adapter="ChatAdapter",
        num_train=2,
        num_val=1,
        trainset=[{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}],
        valset=[{"question": "3+3?", "answer": "6"}],
        resumed=resumed,
    )


def _end_event(status: str, run: str, iteration: IterationResult) -> events.CompileEnded:
    if status != "finished":
        return events.CompileEnded(
            status, make_result([], run=run, ended="unfinished"), "TrainingError: the job failed"
        )
    return events.CompileEnded(status, make_result([0.0, iteration], run=run))


def _evaluation(iteration: int, score: float) -> Iterator[Event]:
    yield "on_stage_started", events.StageStarted(iteration=iteration, stage="evaluate", total=1)
    event = events.Evaluated(iteration=iteration, score=score, num_examples=1, label="program")
    yield "on_evaluated", event


def _collection(run: str) -> Iterator[Event]:
    good, bad, crashed = _trajectory(run, "2", 1.0), _trajectory(run, "5", 0.0), _crash(run)
    yield "on_stage_started", events.StageStarted(iteration=1, stage="collect", total=3)
    for trajectory in (good, bad, crashed):
        event = events.RolledOut(iteration=1, trajectory=trajectory, succeeded=trajectory.reward >= 1.0)
        yield "on_rolled_out", event
    yield "on_stage_started", events.StageStarted(iteration=1, stage="credit", total=1)
    rerun = _trajectory(run, "2", 1.0, origin="credit", parent=good.id, edited=0)
    yield "on_credited", events.Credited(iteration=1, trajectory=rerun, run=good, succeeded=True)
    yield "on_stage_started", events.StageStarted(iteration=1, stage="repair", total=2)
    fixed = _trajectory(run, "4", 1.0, origin="repair", parent=bad.id, edited=1)
    tried = Attempt(1, "solver.predict", "repaired", "Add again.", {"answer": "4"}, {"answer": "4"}, 1.0, fixed.id)
    leaked = Attempt(0, "analyst", "leaked", detail="the gold answer")
    yield "on_repaired", events.Repaired(1, Repair(bad.id, (leaked, tried), run, 1, 0.5), [fixed])
    yield "on_repaired", events.Repaired(1, Repair(crashed.id, (), run, 1, 0.0), [])


def _train_events(run_dir: Path, agent: str) -> Iterator[Event]:
    rows = run_dir / f"{agent}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    yield "on_stage_started", events.StageStarted(iteration=1, stage="train", total=2)
    yield "on_curated", events.Curated(1, agent, len(ROWS), {"duplicate": 3, "unparsed": 0}, rows)
    for step in (1, 2):
        yield "on_training_progress", events.TrainingProgress(1, agent, step, 2, 1 / step)
    weights = run_dir / "weights" if agent == "analyst" else None
    if weights is not None:
        weights.mkdir(exist_ok=True)
        (weights / "adapter.json").write_text("{}", encoding="utf-8")
    yield (
        "on_trained",
        events.Trained(1, agent, "toy/base", f"toy/{agent}+1", len(ROWS), (1.0, 0.5), 0.1, weights),
    )


def _trajectory(run: str, answer: str, reward: float, **lineage: Any) -> Trajectory:
    steps = (
        Step("analyst", 0, {"question": "2+2?"}, {"facts": "two twos"}, "toy/base", started=1, ended=2),
        Step("solver.predict", 0, {"facts": "two twos"}, {"answer": answer}, "toy/base", started=3, ended=4),
    )
    prediction = {"answer": answer}
    return Trajectory(digest(answer), steps, prediction, reward, program="p", run=run, iteration=1, **lineage)


def _crash(run: str) -> Trajectory:
    failure = Failure("AdapterParseError", "no answer field", "well, well")
    steps = (Step("analyst", 0, {"question": "0?"}, None, "toy/base", failure, started=1, ended=2),)
    return Trajectory(digest("0"), steps, None, 0.0, failure=failure, program="p", run=run, iteration=1)
