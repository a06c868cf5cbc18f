"""Credit: value the steps of an iteration's runs by running the program again from each of them on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import dspy

from sirius_dspy.credit.credit import Credit, Credits
from sirius_dspy.credit.reading import read_credits, read_reruns, success_of
from sirius_dspy.credit.values import StepCredit, follows
from sirius_dspy.errors import ReplayDivergedError
from sirius_dspy.optimizer.collect import collected, failed_runs, rollouts
from sirius_dspy.optimizer.results import CreditResult
from sirius_dspy.optimizer.session import Session
from sirius_dspy.running.attempts import Broken, attempt_all
from sirius_dspy.running.examples import copy_example
from sirius_dspy.running.rerun import rerun
from sirius_dspy.running.rollout import Rollouts, Task
from sirius_dspy.running.unfinished import Unfinished, report_unfinished
from sirius_dspy.tracking.events import Credited, StageStarted
from sirius_dspy.trajectory import Lineage, Step, Trajectory


class _Item(NamedTuple):
    """One rerun to make."""

    run: Trajectory
    position: int
    number: int
    is_alternative: bool


def value_steps(session: Session, iteration: int, credit: Credit) -> None:
    """Make all reruns of an iteration; those in the library are not made again.

    Raises:
        UnfinishedError: Some reruns did not end, because the LM or the network failed.
        BudgetReached: There is no room for another rerun.
    """
    items = _items_left(session, iteration, credit)
    session.tracker.on_stage_started(StageStarted(iteration, "credit", len(items)))
    unfinished: dict[str, tuple[dspy.Example, Unfinished]] = {}
    num_done = 0
    patience = session.settings.patience
    how = _Rerun(rollouts(session, iteration), session.weights.program, credit.temperature)
    with session.workers.open(how, patience) as make_rerun:
        outcomes = attempt_all(
            lambda item: make_rerun((item, session.plan.unique_trainset[item.run.example_key])),
            items,
            session.settings.num_threads,
            patience=patience,
            health=session.health,
            limit=session.account.allowance(session.num_predictors),
            held=session.hold.is_held,
            on_stop=make_rerun.leave,
        )
        with closing(outcomes):
            for item, outcome in outcomes:
                num_done += 1
                if isinstance(outcome, Broken):
                    lost = Unfinished.of(_lineage(item), outcome.failure)
                    unfinished[lost.example_key] = session.plan.unique_trainset[lost.example_key], lost
                    session.library.add_unfinished(lost)
                elif outcome is not None:
                    _keep(session, iteration, item, outcome)
    report_unfinished(unfinished.values(), session.settings.patience.max_unfinished)
    if num_done < len(items):
        session.account.end_if_full(session.num_predictors)


def find_credits(session: Session, iterations: Iterable[int]) -> Credits:
    """The credits of the steps that were valued in some iterations."""
    credits: dict[str, dict[int, StepCredit]] = defaultdict(dict)
    for iteration in iterations:
        for found in _read(session, iteration):
            credits[found.trajectory][found.position] = found
    return credits


def credit_results(session: Session, iteration: int) -> dict[str, CreditResult]:
    """Agent name to how much its steps mattered."""
    if session.settings.credit is None:
        return {}
    found = _read(session, iteration)
    by_agent = {
        agent: [credit.credit for credit in found if credit.predictor in names]
        for agent, names in session.plan.agents.items()
    }
    return {agent: _summarize(values) for agent, values in by_agent.items() if values}


def _summarize(values: Sequence[float]) -> CreditResult:
    helped, harmed = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return CreditResult(steps=len(values), mean=sum(values) / len(values), helped=helped, harmed=harmed)


def _read(session: Session, iteration: int) -> list[StepCredit]:
    return read_credits(
        session.library,
        session.run,
        iteration,
        threshold=session.settings.threshold,
        agents=session.plan.agents,
        is_current=session.weights.could_have_rerun,
    )


# What to rerun


def _items_left(session: Session, iteration: int, credit: Credit) -> list[_Item]:
    runs = _choose(session, iteration, credit)
    by_id = {run.id: run for run in runs}
    succeeded = success_of(session.plan.agents, session.settings.threshold)
    done = {
        (str(made.parent), read.position, read.number)
        for made, read in read_reruns(session.library, by_id, iteration, succeeded)
        if session.weights.could_have_rerun(made)
    }
    items = (item for run in by_id.values() for item in _items(session, run, credit))
    return [item for item in items if (item.run.id, item.position, item.number) not in done]


def _choose(session: Session, iteration: int, credit: Credit) -> list[Trajectory]:
    """The runs to value: successful ones, and failed ones that will be repaired; in an order that repeats."""
    threshold, augmenter = session.settings.threshold, session.settings.augmenter
    succeeded = success_of(session.plan.agents, threshold)
    good: dict[str, list[Trajectory]] = defaultdict(list)
    for run in collected(session, iteration):
        if any(succeeded(run, name) for name in session.plan.editable):
            good[run.example_key].append(run)
    ranked = [
        (rank, run)
        for key in sorted(good)
        for rank, run in enumerate(sorted(good[key], key=lambda run: (run.sample, run.id)))
    ]
    chosen = [run for _, run in sorted(ranked, key=lambda pair: pair[0])][: credit.max_runs]
    if credit.order and augmenter is not None:
        chosen += augmenter.choose(failed_runs(session, iteration))[: credit.max_runs]
    return chosen


def _items(session: Session, run: Trajectory, credit: Credit) -> Iterator[_Item]:
    """The reruns of one run, step by step."""
    for position, step in enumerate(run.steps):
        if not _is_valued(session, run, step):
            continue
        held = credit.continuations if follows(run, position) else 0
        for number in range(held):
            yield _Item(run, position, number, is_alternative=False)
        for number in range(credit.continuations, credit.continuations + credit.alternatives):
            yield _Item(run, position, number, is_alternative=True)


def _is_valued(session: Session, run: Trajectory, step: Step) -> bool:
    """Whether the step is an agent's own, which is trained."""
    return step.predictor in session.plan.editable and session.weights.answered(run, step)


# One rerun


@dataclass(frozen=True)
class _Rerun:
    """Makes one; this is what workers get."""

    rollouts: Rollouts
    program: dspy.Module
    temperature: float
    """Of alternatives."""

    def __call__(self, task: tuple[_Item, dspy.Example]) -> Trajectory | None:
        """Make a rerun; `None` if the program did not come to the step again, which costs nothing."""
        item, example = task
        as_then = self.rollouts.sampling(Task(example, item.run.sample))
        sampling = replace(as_then, key=f"{as_then.key}/credit/{item.position}/{item.number}")
        anew = {"temperature": self.temperature} if item.is_alternative else None
        inputs = copy_example(example).inputs()
        try:
            recording = rerun(self.program, inputs, item.run, item.position, sampling, anew)
        except ReplayDivergedError:
            return None
        return self.rollouts.score(recording, example, self.program, _lineage(item)).trajectory


def _lineage(item: _Item) -> Lineage:
    return replace(item.run.repair_lineage, origin="credit", sample=item.number)


def _keep(session: Session, iteration: int, item: _Item, made: Trajectory) -> None:
    session.library.add(made)
    session.account.note_item(made.usage)
    session.weights.note_chosen(made)
    session.tracker.on_credited(Credited(iteration, made, item.run, made.succeeded(session.settings.threshold)))


def gains_of(credits: Credits) -> dict[str, dict[int, float]]:
    """Id of a run to what an alternative gains at each of its steps."""
    return {run: {place: -found.credit for place, found in steps.items()} for run, steps in credits.items()}
