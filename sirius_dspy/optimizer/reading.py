"""The results of a compile from its run directory, whether it has finished or not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sirius_dspy.errors import RunMismatchError
from sirius_dspy.optimizer.accounts import read_account
from sirius_dspy.optimizer.records import Job
from sirius_dspy.optimizer.reporting import score_together, unfinished_iteration, usage_result
from sirius_dspy.optimizer.results import CompileResult, IterationResult
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.trajectory import digest


def read_results(run_dir: Path | str) -> CompileResult:
    """Read the results of a compile; those of an interrupted one are put together from the stages that finished.

    Args:
        run_dir: Folder of the compile.

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
    result = folder.results()
    if result is None:
        return _interrupted(folder, identity)
    if result.ended != "budget":
        return result
    account, jobs = read_account(folder, identity["agents"]), _jobs(folder, identity["agents"])
    unfinished = unfinished_iteration(account, result.iterations, jobs)
    if unfinished is None or result.unfinished is None:
        return replace(result, unfinished=unfinished)
    with_jobs = replace(result.unfinished, agents=unfinished.agents)  # the rest is priced by the user's own table
    return replace(result, unfinished=with_jobs)


def _interrupted(folder: RunDir, identity: dict[str, Any]) -> CompileResult:
    run = identity.get("run") or digest(identity)[:12]
    account, settings = read_account(folder, identity["agents"]), identity["settings"]
    history = list(_finished_iterations(folder))
    return CompileResult(
        run=run,
        run_dir=str(folder.path),
        adapter=identity["adapter"],
        seed=settings["seed"],
        threshold=settings["threshold"],
        agents={agent: tuple(names) for agent, names in identity["agents"].items()},
        iterations=score_together(history),
        unfinished=unfinished_iteration(account, history, _jobs(folder, identity["agents"])),
        program=_program_name(identity),
        usage=usage_result(account.spent()),
        seconds=sum(account.seconds.values()),
    )


def _program_name(identity: Mapping[str, Any]) -> str:
    """Class of the program; empty if the identity does not name it."""
    described = identity.get("program")
    kind = described.get("class") if isinstance(described, Mapping) else None
    return str(kind.get("name", "")) if isinstance(kind, Mapping) else str(kind or "").rpartition(".")[2]


def _finished_iterations(folder: RunDir) -> Iterator[IterationResult]:
    number = 0
    while (entry := folder.iteration(number)) is not None:
        yield entry
        number += 1


def _jobs(folder: RunDir, agents: Collection[str]) -> dict[int, dict[str, Job]]:
    """Iteration to agent name to its finished fine-tuning job."""
    jobs = {number: {agent: folder.job(number, agent) for agent in agents} for number in folder.iterations_with_jobs()}
    return {number: {agent: job for agent, job in done.items() if job is not None} for number, done in jobs.items()}
