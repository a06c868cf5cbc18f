"""The account of a compile on disk: what an interrupted one had spent counts, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.budget import Account, Budget, job_key
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.records import Job
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.spent import Ledger, add_to
from sirius_dspy.repair.critic_training import CRITIC
from sirius_dspy.running.journal import CallJournal
from sirius_dspy.trajectory import Origin, Usage

STAGE_OF: dict[Origin, str] = {
    "rollout": "collect",
    "credit": "credit",
    "repair": "repair",
    "confirmation": "repair",
    "validation": "evaluate",
}
"""Origin of a run to the stage that made it."""


def open_account(plan: Plan, library: ExperienceLibrary, run: str) -> Account:
    """The account of a compile, with what it had spent before.

    A killed process could not save its account. Then the calls are counted that are in the library, or in the journal
    of a stage that had not ended, which has those of unfinished runs, too. Fine-tuning jobs that have ended have the
    prices that are known now.
    """
    account = read_account(plan.run_dir, plan.agents, plan.settings.budget, lambda job: usd_of_job(plan, job))
    for ledger in (_kept_calls(library, run), _journaled_calls(plan.run_dir)):
        for key, kept in ledger.items():
            if _num_calls(account.ledger.get(key, {})) < _num_calls(kept):
                account.ledger[key] = kept
    return account


def read_account(
    run_dir: RunDir,
    agents: Iterable[str],
    budget: Budget | None = None,
    usd_of: Callable[[Job], float | None] = lambda job: job.usd,
) -> Account:
    """The account that `save_account` wrote, with the fine-tuning jobs that have ended.

    Args:
        run_dir: Of the compile.
        agents: Names of the program's agents.
        budget: `None` is no limit.
        usd_of: What a job cost; by default, what was known when it ended. `None` does not count.

    Raises:
        RunDamagedError: A file is damaged.
    """
    ended = list(_ended_jobs(run_dir, {*agents, CRITIC}))
    bases = {job.lm: job.base for job in ended if job.lm != job.base}
    jobs: dict[str, dict[str, float]] = {}
    for job in ended:
        if usd := usd_of(job):
            jobs.setdefault(job_key(job.iteration), {})[job.agent] = usd
    saved = run_dir.spending()
    if saved is None:
        return Account(budget, jobs=jobs, bases=bases)
    ledger: Ledger = {
        key: {model: Usage(*numbers) for model, numbers in noted.items()} for key, noted in saved.calls.items()
    }
    return Account(budget, ledger, saved.seconds, jobs, bases)


def usd_of_job(plan: Plan, job: Job) -> float | None:
    """What a job that has ended cost, at the price that is known now; `None` if nobody knows it."""
    lm = plan.trainable_lms.get(job.agent)
    price = None if lm is None else plan.settings.trainer.price(lm)
    return job.usd if price is None else price * job.tokens / 1e6


def _ended_jobs(run_dir: RunDir, agents: Iterable[str]) -> Iterable[Job]:
    found = (run_dir.job(number, agent) for number in run_dir.iterations_with_jobs() for agent in agents)
    return (job for job in found if job is not None)


def calls_file(run_dir: RunDir, iteration: int, stage: str) -> Path:
    """Where the calls of a stage are kept until it has ended."""
    return run_dir.calls / f"{iteration}-{stage}.jsonl"


def save_account(account: Account, run_dir: RunDir) -> None:
    """Write down what was spent.

    Raises:
        RunDirError: The folder cannot be used.
    """
    calls = {
        key: {model: [usage.calls, usage.prompt_tokens, usage.completion_tokens] for model, usage in by_model.items()}
        for key, by_model in account.ledger.items()
    }
    run_dir.finish("spending", {"calls": calls, "seconds": account.seconds})


def _kept_calls(library: ExperienceLibrary, run: str) -> Ledger:
    ledger: Ledger = {}
    for trajectory in library.trajectories(run=run):
        key = f"{trajectory.iteration}/{STAGE_OF.get(trajectory.origin, 'collect')}"
        for step in trajectory.steps:
            if step.usage.calls:
                add_to(ledger, key, step.lm, step.usage)
    for repair in library.repairs(run=run):
        if repair.usage.calls:  # who answered the critic's questions is not stored
            add_to(ledger, f"{repair.iteration}/repair", "", repair.usage)
    return ledger


def _journaled_calls(run_dir: RunDir) -> Ledger:
    """What the calls consumed that are kept; stages are named in the ledger as in `calls_file`."""
    return {path.stem.replace("-", "/", 1): CallJournal(path).usage for path in run_dir.calls.glob("*.jsonl")}


def _num_calls(by_model: Mapping[str, Usage]) -> int:
    return sum(usage.calls for usage in by_model.values())
