"""What a run directory says about its compile: the results of a finished one, the finished parts of any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.running.standing import Standing
from sirius_dspy.stats import Interval, wilson_interval
from sirius_dspy.trajectory import digest

Results = Mapping[str, Any]
"""`CompileEnded.results`, which is also `detailed_results` of the compiled program; an interrupted compile has fewer
keys. `test`, where somebody measured it, is the stage of that name: see `tables.test_table`."""


def read_results(run_dir: Path | str, library: ExperienceLibrary | None = None) -> dict[str, Any]:
    """What is known of a compile, finished or not.

    Args:
        run_dir: Its folder.
        library: Where its runs are; the score of the student as given is only there until the compile has finished.

    Raises:
        RunMismatchError: No compile has begun in the folder.
        RunDamagedError: A file of it is damaged.
    """
    folder = RunDir(Path(run_dir))
    identity = folder.shown_identity()
    if identity is None:
        raise RunMismatchError(
            f"{str(run_dir)!r} is not the folder of a compile: it has no `run.json`. Pass the `run_dir` that the "
            "compile was given."
        )
    finished = folder.results()
    results = _unfinished(folder, identity, library) if finished is None else finished.to_dict()
    test = folder.test()
    return results if test is None else {**results, "test": test}


def score_interval(iteration: Results) -> Interval | None:
    """The 95 % Wilson interval of an iteration's score; `None` where the score is not a share of solved examples."""
    score, num_val = iteration.get("score"), iteration.get("num_val", 0)
    if score is None or not num_val or not 0 <= score <= 1:
        return None
    solved = round(score * num_val)
    is_share = abs(score * num_val - solved) < 1e-6
    return wilson_interval(solved, num_val) if is_share else None


def _unfinished(folder: RunDir, identity: Results, library: ExperienceLibrary | None) -> dict[str, Any]:
    run = identity.get("run") or digest(identity)[:12]  # folders of version 0.1 do not name the run
    history = list(_finished_iterations(folder))
    if jobs := _finished_jobs(folder, len(history) + 1, identity["agents"]):
        history.append({"iteration": len(history) + 1, "agents": jobs})
    if library is not None and (baseline := _baseline(library, run)) is not None:
        history.insert(0, baseline)
    results: dict[str, Any] = {
        "run": run,
        "run_dir": str(folder.path),
        "adapter": identity["adapter"],
        "seed": identity["settings"]["seed"],
        "threshold": identity["settings"]["threshold"],
        "agents": identity["agents"],
        "iterations": history,
        "unfinished": True,
    }
    if scored := [entry for entry in history if "score" in entry]:
        best = max(scored, key=lambda entry: entry["score"])
        results |= {"best_iteration": best["iteration"], "best_score": best["score"]}
    return results


def _finished_iterations(folder: RunDir) -> Iterator[dict[str, Any]]:
    number = 1
    while (entry := folder.iteration(number)) is not None:
        yield entry.to_dict()
        number += 1


def _finished_jobs(folder: RunDir, iteration: int, agents: Iterable[str]) -> dict[str, Any]:
    """Agent name to its fine-tuning job, of an iteration that has not finished."""
    jobs = {agent: folder.job(iteration, agent) for agent in agents}
    return {agent: job.model_dump() for agent, job in jobs.items() if job is not None}


def _baseline(library: ExperienceLibrary, run: str) -> dict[str, Any] | None:
    """Iteration 0: the student on the valset; `None` unless all of it was run, which the first rollout tells."""
    if not library.count(run=run, origin="rollout"):
        return None
    found = list(library.trajectories(run=run, iteration=0, origin="validation", sample=0))
    return {"iteration": 0, "score": Standing.of(found).mean(), "num_val": len(found)} if found else None
