"""The account of a compile on disk: what an interrupted one had spent counts, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.budget import Account, Budget
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.spent import Ledger, add_to
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
    of a stage that had not ended, which has those of unfinished runs, too.
    """
    account = read_account(plan.run_dir, plan.settings.budget)
    for ledger in (_kept_calls(library, run), _journaled_calls(plan.run_dir)):
        for key, kept in ledger.items():
            if _num_calls(account.ledger.get(key, {})) < _num_calls(kept):
                account.ledger[key] = kept
    return account


def read_account(run_dir: RunDir, budget: Budget | None = None) -> Account:
    """The account that `save_account` wrote; an empty one if there is none.

    Raises:
        RunDamagedError: The file is damaged.
    """
    saved = run_dir.spending()
    if saved is None:
        return Account(budget)
    ledger: Ledger = {
        key: {model: Usage(*numbers) for model, numbers in noted.items()} for key, noted in saved.calls.items()
    }
    return Account(budget, ledger, saved.seconds)


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
