"""Curate and train: write each agent's rows, and turn them into new weights."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import SettingsError, TrainingError, UnpreparedProgramError
from sirius_dspy.optimizer.credit import find_credits
from sirius_dspy.optimizer.pairs import preference_pairs
from sirius_dspy.optimizer.records import COUNT_LIMIT, Job
from sirius_dspy.optimizer.run_dir import RunDir
from sirius_dspy.optimizer.session import Session
from sirius_dspy.optimizer.warm_start import add_demonstrations
from sirius_dspy.optimizer.weights import LMs
from sirius_dspy.running.prompt import SentPrompt
from sirius_dspy.tracking.events import Curated, StageStarted, Trained, TrainingProgress
from sirius_dspy.training.curate import Appraisal, Appraise, TrainingSet
from sirius_dspy.training.trainers import Trainer, TrainingRequest
from sirius_dspy.trajectory import Repair, Step, Trajectory


def curate(session: Session, iteration: int) -> dict[str, TrainingSet]:
    """Write the rows of each agent that is trained."""
    settings, trained = session.settings, session.plan.trained
    session.tracker.on_stage_started(StageStarted(iteration, "curate", len(trained)))
    iterations = session.row_iterations(iteration)
    runs = (
        run
        for number in iterations
        for run in session.library.trajectories(run=session.run, iteration=number, origin=("rollout", "repair"))
    )
    sets = settings.curator.curate(
        session.weights.program,
        runs,
        trained,
        threshold=settings.threshold,
        seed=settings.seed + iteration,
        is_own=session.weights.answered,
        appraise=_appraise(session, iterations),
    )
    _check_sets(session, sets)
    collecting = settings.collect
    if collecting.warm_start and collecting.keep_demos:
        sets = add_demonstrations(session, sets, settings.seed + iteration)
    keep_sets(session, iteration, sets)
    return sets


def _appraise(session: Session, iterations: Sequence[int]) -> Appraise:
    """Leave out what an agent's LM cannot be trained on, and appraise the others."""
    by_origin, plan = _appraise_by_origin(session, iterations), session.plan
    text_only = {
        name
        for agent, names in plan.trained.items()
        if not plan.settings.trainer.trains_on_images(plan.start[agent])
        for name in names
    }

    def appraise(trajectory: Trajectory, step: Step) -> Appraisal:
        if step.predictor in text_only and step.prompt is not None and not SentPrompt.read(step.prompt).is_text:
            return Appraisal("has images or other media")
        return by_origin(trajectory, step)

    return appraise


def _appraise_by_origin(session: Session, iterations: Sequence[int]) -> Appraise:
    """Appraise steps of repairs by what the augmenter says, and those of rollouts by their credit."""
    credit, of_repair = session.settings.credit, _appraise_repairs(session, iterations)
    if credit is None:
        return of_repair
    credits = find_credits(session, iterations)

    def appraise(trajectory: Trajectory, step: Step) -> Appraisal:
        if trajectory.id not in credits:
            return of_repair(trajectory, step)
        return credit.appraise(trajectory, trajectory.steps.index(step), credits[trajectory.id])

    return appraise


def _appraise_repairs(session: Session, iterations: Iterable[int]) -> Appraise:
    """Leave out what the augmenter refuses of its own repairs."""
    augmenter = session.settings.augmenter
    repairs: list[Repair] = []
    for iteration in iterations:
        repairs += session.library.repairs(run=session.run, iteration=iteration)
    refused = {} if augmenter is None or not repairs else augmenter.refuse(repairs)
    return lambda trajectory, step: Appraisal(refused.get(trajectory.id, ""))


def keep_sets(session: Session, iteration: int, sets: Mapping[str, TrainingSet]) -> None:
    """Write training sets into the run directory."""
    run_dir = session.plan.run_dir
    for agent, rows in sets.items():
        path = run_dir.training_file(iteration, agent)
        with run_dir.usable():
            rows.write(path)
        session.tracker.on_curated(Curated(iteration, agent, len(rows.rows), rows.dropped, path))


def _check_sets(session: Session, sets: Any) -> None:
    """Refuse what a curator of the user's own returned, if it is no table of training sets.

    Raises:
        SettingsError: The message says what it is.
    """
    known = session.plan.trained
    fits = isinstance(sets, Mapping) and all(
        agent in known and isinstance(rows, TrainingSet) for agent, rows in sets.items()
    )
    if not fits:
        curator = type(session.settings.curator).__name__
        raise SettingsError(
            f"The curator {curator} returned {checks.describe_value(sets)}, expected a `TrainingSet` for each of some "
            f"agents out of {list(known)}."
        )


def train(session: Session, iteration: int, sets: Mapping[str, TrainingSet]) -> dict[str, Job]:
    """Fine-tune each agent that has rows, unless that is done.

    Raises:
        TrainingError: A training set is too small, or a job failed.
        BudgetReached: Nothing may begin any more.
    """
    with_rows = {agent: rows for agent, rows in sets.items() if rows.rows}
    jobs = {agent: session.plan.run_dir.job(iteration, agent) for agent in with_rows}
    for agent, rows in with_rows.items():
        if jobs[agent] is None:
            session.settings.trainer.check_rows(agent, _base(session, agent), len(rows.rows))
    missing = [(rows, _base(session, agent)) for agent, rows in with_rows.items() if jobs[agent] is None]
    trained = _train_missing(session, iteration, missing)
    return {agent: job or trained[agent] for agent, job in jobs.items()}


def train_critic(session: Session, iteration: int, rows: TrainingSet, base: dspy.LM) -> Job:
    """Fine-tune the critic, unless that is done.

    Raises:
        TrainingError: The training set is too small, or the job failed.
        BudgetReached: Nothing may begin any more.
    """
    if (done := session.plan.run_dir.job(iteration, rows.agent)) is not None:
        return done
    session.settings.trainer.check_rows(rows.agent, base, len(rows.rows))
    return _train_missing(session, iteration, [(rows, base)])[rows.agent]


def restore(run_dir: RunDir, trainer: Trainer, start: LMs, agent: str, model: str) -> dspy.LM:
    """The LM of a job that finished before a restart.

    Raises:
        UnpreparedProgramError: The run directory does not know the job.
    """
    for iteration in reversed(run_dir.iterations_with_jobs()):
        job = run_dir.job(iteration, agent)
        if job is not None and job.lm == model:
            is_first = job.base == start[agent].model
            base = start[agent] if is_first else restore(run_dir, trainer, start, agent, job.base)
            return trainer.restore(base, model, run_dir.weights(iteration, agent))
    raise UnpreparedProgramError(
        f"The run directory {str(run_dir.path)!r} has no fine-tuning job that made {model!r} of agent {agent!r}: files "
        "of it are missing. Choose another `run_dir`."
    )


def _base(session: Session, agent: str) -> dspy.LM:
    """What the agent's next job starts from."""
    is_base = session.settings.trainer.train_from == "base"
    return (session.weights.start if is_base else session.weights.current)[agent]


def _train_missing(session: Session, iteration: int, sets: Sequence[tuple[TrainingSet, dspy.LM]]) -> dict[str, Job]:
    """Fine-tune agents, each from an LM; a result is on disk before the next one is asked for."""
    losses: dict[str, list[float]] = {rows.agent: [] for rows, _ in sets}
    trainer = session.settings.trainer
    requests = trainer.order([_request(session, iteration, rows, base, losses[rows.agent]) for rows, base in sets])
    _reserve(session, iteration, requests)
    lms = iter(trainer.train_all(requests))
    jobs: dict[str, Job] = {}
    for request in requests:
        if not trainer.has_begun(request):  # what is paid for already is taken up and counted
            session.account.check()
        session.plan.run_dir.check_writable()  # the job is paid for, and its result must not be lost
        session.tracker.on_stage_started(StageStarted(iteration, "train", 1))
        began = time.perf_counter()
        lm = next(lms, None)
        seconds = time.perf_counter() - began
        jobs[request.agent] = _finish(session, iteration, request, lm, losses[request.agent], seconds)
    return jobs


def _reserve(session: Session, iteration: int, requests: Sequence[TrainingRequest]) -> None:
    """Count what the jobs will cost, before any of them begins.

    Raises:
        BudgetReached: Those that no earlier call began do not fit.
        SettingsError: The trainer's tokens are no number.
    """
    trainer, account = session.settings.trainer, session.account
    usd = {request.agent: _usd(trainer, request) or 0.0 for request in requests}
    begun = {request.agent for request in requests if trainer.has_begun(request)}
    for agent in begun:
        account.note_job(iteration, agent, usd[agent])
    new = usd.keys() - begun
    account.end_before_jobs(sum(usd[agent] for agent in new))
    for agent in new:
        account.note_job(iteration, agent, usd[agent])


def _tokens(trainer: Trainer, request: TrainingRequest) -> int:
    """Tokens that a job is charged for; an estimate need not be whole.

    Raises:
        SettingsError: They are no number.
    """
    tokens = trainer.trained_tokens(request)
    checks.check(type(trainer).__name__, {"trained_tokens": tokens}, {"trained_tokens": _TOKENS})
    return round(tokens)


_TOKENS = checks.number(0, below=COUNT_LIMIT)


def _usd(trainer: Trainer, request: TrainingRequest) -> float | None:
    """US dollars of a job, as far as its tokens are known; `None` if its price is not."""
    price, tokens = trainer.price(request.lm), _tokens(trainer, request)
    return None if price is None else price * tokens / 1e6


def _request(
    session: Session, iteration: int, rows: TrainingSet, base: dspy.LM, losses: list[float]
) -> TrainingRequest:
    def on_progress(step: int, total: int, loss: float) -> None:
        losses.append(loss)
        session.tracker.on_training_progress(TrainingProgress(iteration, rows.agent, step, total, loss))

    workdir = session.plan.run_dir.weights(iteration, rows.agent)
    seed = session.settings.seed + iteration
    has_pairs = session.settings.trainer.wants_pairs and rows.agent in session.plan.trained  # the critic has none
    pairs = preference_pairs(session, iteration, rows.agent) if has_pairs else []
    return TrainingRequest(rows.agent, base, rows.chat, workdir, seed, on_progress, pairs)


def _finish(
    session: Session,
    iteration: int,
    request: TrainingRequest,
    lm: dspy.LM | None,
    losses: list[float],
    seconds: float,
) -> Job:
    """Write down that an agent has new weights.

    Raises:
        TrainingError: It has none.
    """
    agent, base = request.agent, request.lm.model
    trainer = session.settings.trainer
    if lm is None:
        name = type(trainer).__name__
        raise TrainingError(f"`{name}.train_all` yielded no LM for agent {agent!r}, expected one per request.")
    usd = _usd(trainer, request)
    job = Job(
        agent=agent,
        iteration=iteration,
        lm=lm.model,
        base=base,
        rows=len(request.rows),
        losses=losses,
        seconds=seconds,
        tokens=_tokens(trainer, request),
        usd=usd,
    )
    session.account.note_job(iteration, agent, usd or 0.0)
    if lm.model != base:
        session.account.bases[lm.model] = base
    session.weights.add(agent, lm)
    session.plan.run_dir.finish_job(job)
    weights = request.workdir if request.workdir.exists() else None
    session.tracker.on_trained(Trained(iteration, agent, base, lm.model, job.rows, losses, seconds, weights))
    return job
