"""The loop of one compile: collect, repair, curate, fine-tune, evaluate, and again.

This is the only place that knows the order. Every result is saved before the next step starts: rollouts and repairs in
the experience library, fine-tuning jobs and finished iterations in the run directory. So a resumed compile is the same
code: each stage first looks what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import dspy

from sirius_dspy.errors import RunDirError
from sirius_dspy.library.experience import ExperienceLibrary
from sirius_dspy.optimizer.accounts import calls_file, open_account, save_account
from sirius_dspy.optimizer.budget import BudgetReached
from sirius_dspy.optimizer.collect import collect
from sirius_dspy.optimizer.credit import value_steps
from sirius_dspy.optimizer.evaluate import choose_weights, evaluate
from sirius_dspy.optimizer.fine_tune import curate, keep_sets, restore, train
from sirius_dspy.optimizer.hold import Hold
from sirius_dspy.optimizer.live import LiveFile
from sirius_dspy.optimizer.nothing import explain_nothing
from sirius_dspy.optimizer.plan import Plan
from sirius_dspy.optimizer.repair import repair
from sirius_dspy.optimizer.reporting import compile_result, first_result, iteration_result
from sirius_dspy.optimizer.results import CompileResult, Ended, IterationResult, TrialResult
from sirius_dspy.optimizer.session import Session
from sirius_dspy.optimizer.trackers import make_trackers
from sirius_dspy.optimizer.warm_start import demonstration_rows, store_demonstrations
from sirius_dspy.optimizer.weights import Weights
from sirius_dspy.redact import redact_errors
from sirius_dspy.running.executor import Workers, started
from sirius_dspy.running.journal import keep_calls
from sirius_dspy.running.standing import Standing
from sirius_dspy.running.truncation import drop_truncation_warnings
from sirius_dspy.tracking.events import CompileEnded, CompileStarted, IterationEnded
from sirius_dspy.trajectory import to_plain

logger = logging.getLogger(__name__)


class Loop:
    """Carries out a plan.

    Args:
        plan: What to do.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended: Ended = "unfinished"
        self.reason = ""

    def run(self) -> dspy.Module:
        """Iterate, and return the best program with a `CompileResult` as its `detailed_results`."""
        with (
            self.plan.run_dir.locked(),
            self._library() as library,
            dspy.context(disable_history=True),
            started(self.plan.settings.executor) as workers,
        ):
            with redact_errors():
                session, resumed = self._begin(library, workers)
            # Errors lose their credentials before the tracker hears of them.
            with self._tracked(session, resumed), redact_errors(), self._serving(session):
                with session.account.listening(), drop_truncation_warnings():
                    self._work(session)
                return self._finish(session)

    # The whole

    def _work(self, session: Session) -> None:
        """All iterations, or as many as the budget allows."""
        try:
            self._score_student(session)
            for iteration in range(1, self.plan.settings.iterations + 1):
                if not self._iterate(session, iteration):
                    self.ended, self.reason = "nothing learned", f"iteration {iteration} gave no training row"
                    return
            self.ended = "finished"
        except BudgetReached as reached:
            self.ended, self.reason = "budget", str(reached)
            logger.warning("The compile ends at its budget: %s. Call it again with a larger one to go on.", reached)

    def _score_student(self, session: Session) -> None:
        """Iteration 0: the student as it came, and its warm start if there is to be one, unless that is done."""
        result = self.plan.run_dir.iteration(0)
        if result is None:
            self.plan.run_dir.reopen()
            with self._stage(session, 0, "evaluate"):
                standing = evaluate(session, 0, session.weights.start, "program", candidate=0)
            result = self._warm_up(session, standing) or first_result(session, standing)
            self.plan.run_dir.finish("iteration-0", result.to_dict())
        self._add(session, result)

    def _warm_up(self, session: Session, standing: Standing) -> IterationResult | None:
        """Fine-tune on the demonstrations; `None` if that is not asked for."""
        if not self.plan.settings.collect.warm_start:
            return None
        with self._stage(session, 0, "curate"):
            store_demonstrations(session)
            sets = demonstration_rows(session)
            keep_sets(session, 0, sets)
        with self._stage(session, 0, "train"):
            jobs = train(session, 0, sets)
        new = {agent: session.weights.find(agent, job.lm) for agent, job in jobs.items()}
        with self._stage(session, 0, "evaluate"):
            choice = choose_weights(session, 0, new, [standing])
        student = TrialResult((), standing)
        result = iteration_result(session, 0, choice, jobs, sets)
        return replace(result, trials=(student, *result.trials))

    def _iterate(self, session: Session, iteration: int) -> bool:
        """One iteration, unless it is done; false if there was nothing to learn from."""
        result = self.plan.run_dir.iteration(iteration)
        if result is None:
            self.plan.run_dir.reopen()
            result = self._learn(session, iteration)
            if result is None:
                return False
            self.plan.run_dir.finish(f"iteration-{iteration}", result.to_dict())
        self._add(session, result)
        session.weights.launches.keep({*result.lms.values(), *self._result(session).best_lms.values()})
        session.tracker.on_iteration_ended(IterationEnded(result))
        return True

    def _add(self, session: Session, result: IterationResult) -> None:
        """Go on from what an iteration ended with."""
        session.weights.current = session.weights.find_all(result.lms)
        session.weights.history.append(result.lms)
        session.weights.remember_chosen(result.chosen_in_forward)
        session.history.append(result)

    def _learn(self, session: Session, iteration: int) -> IterationResult | None:
        """Collect, repair, curate, fine-tune and choose; `None` if there was nothing to learn from."""
        with self._stage(session, iteration, "collect"):
            collect(session, iteration)
        if (credit := self.plan.settings.credit) is not None:
            with self._stage(session, iteration, "credit"):
                value_steps(session, iteration, credit)
        with self._stage(session, iteration, "repair"):
            critic = repair(session, iteration)
        with self._stage(session, iteration, "curate"):
            sets = curate(session, iteration)
        if not any(rows.rows for rows in sets.values()):
            explain_nothing(session, iteration, sets)
            return None
        with self._stage(session, iteration, "train"):
            jobs = train(session, iteration, sets)
        new = {agent: session.weights.find(agent, job.lm) for agent, job in jobs.items()}
        with self._stage(session, iteration, "evaluate"):
            choice = choose_weights(session, iteration, new)
        return iteration_result(session, iteration, choice, jobs, sets, critic)

    @contextmanager
    def _stage(self, session: Session, iteration: int, name: str) -> Iterator[None]:
        """Count what a stage spends, keep the calls of runs under way, and save both; begin none that is put off.

        Each stage has a program in which no earlier run has changed anything.
        """
        session.hold.check(iteration, name)
        session.weights.install(session.weights.current)
        session.live.begin_stage(iteration, name)
        with session.account.stage(iteration, name), keep_calls(calls_file(self.plan.run_dir, iteration, name)):
            yield
        save_account(session.account, self.plan.run_dir)

    # Beginning and end

    @contextmanager
    def _library(self) -> Iterator[ExperienceLibrary]:
        """The user's library, or the run directory's, whose connections are closed at the end, however it ends."""
        if self.plan.settings.library is not None:
            yield self.plan.settings.library
            return
        with redact_errors():
            library = ExperienceLibrary(self.plan.run_dir.library)
        with library:
            yield library

    def _begin(self, library: ExperienceLibrary, workers: Workers) -> tuple[Session, bool]:
        """Claim the run directory, and see that the library is the one that the compile began with, and whole."""
        plan, run_dir = self.plan, self.plan.run_dir
        if run_dir.identity() is None:  # so that a compile that has begun always has a note
            run_dir.note_library(library.library_id, library.url)
        run, resumed = run_dir.begin(plan.identity, plan.settings.accept_changes)
        if resumed and (noted := run_dir.noted_library()) is not None:
            library.check(noted["library_id"], run)
            if noted["url"] != library.url:  # it was moved
                run_dir.note_library(noted["library_id"], library.url)
        start = dict(plan.start)
        weights = Weights(
            plan.student,
            plan.agents,
            start,
            has_teachers=bool(plan.teachers),
            restore=lambda agent, model: restore(run_dir, plan.settings.trainer, start, agent, model),
        )
        account = open_account(plan, library, run)
        live = LiveFile(plan, run, account)
        tracker = make_trackers(plan.settings.tracker, live)
        return Session(plan, run, library, tracker, weights, account, live, Hold(live, account), workers), resumed

    @contextmanager
    def _tracked(self, session: Session, resumed: bool) -> Iterator[None]:
        """Tell the tracker of the beginning and of every way to end."""
        session.tracker.on_compile_started(_started(session, resumed))
        logger.info("SiriuS works in %s", self.plan.run_dir.path)
        try:
            yield
        except BaseException as error:
            with suppress(RunDirError):  # a full disk may be what went wrong; the library knows most of the calls
                save_account(session.account, self.plan.run_dir)
            status = "failed" if isinstance(error, Exception) else "interrupted"
            message = f"{type(error).__name__}: {error}"
            session.tracker.on_compile_ended(CompileEnded(status, self._result(session), message))
            raise
        result = self._result(session)
        session.tracker.on_compile_ended(CompileEnded("finished", result))

    @contextmanager
    def _serving(self, session: Session) -> Iterator[None]:
        """Stop at the end what was launched on the way, but for the LMs of the compiled program."""
        needed: set[str] = set()
        try:
            yield
            needed |= set(self._result(session).best_lms.values())
        finally:
            session.weights.launches.keep(needed)

    def _result(self, session: Session) -> CompileResult:
        return compile_result(session, self.ended, self.reason)

    def _finish(self, session: Session) -> dspy.Module:
        """The program with the best weights."""
        save_account(session.account, self.plan.run_dir)
        result = self._result(session)
        session.weights.install(session.weights.find_all(result.best_lms or self.plan.lms))
        compiled = session.weights.compiled()
        self.plan.run_dir.finish("results", result.to_dict())
        vars(compiled)["detailed_results"] = result
        return compiled


def _started(session: Session, resumed: bool) -> CompileStarted:
    plan = session.plan
    return CompileStarted(
        run=session.run,
        program=type(plan.student).__name__,
        run_dir=plan.run_dir.path,
        library_url=session.library.url,
        params=plan.settings.scalars,
        agents=plan.agents,
        lms=plan.lms,
        adapter=plan.identity["adapter"],
        num_train=len(plan.trainset),
        num_val=len(plan.valset),
        trainset=[to_plain(example) for example in plan.trainset],
        valset=[to_plain(example) for example in plan.valset],
        resumed=resumed,
    )
