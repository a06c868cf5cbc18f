"""The critic as an agent of its own: fine-tuned on its advice that helped, and kept if it repairs as much as before.

The critics are compared on failed runs whose examples gave no training row. Both repair each of them, and what either
repairs is kept. How far the comparison came is noted after every repair, so that a resumed compile repeats none and
decides the same.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import dspy

from sirius_dspy.optimizer.critic_rows import critic_rows, critic_set
from sirius_dspy.optimizer.fine_tune import keep_sets, restore, train_critic
from sirius_dspy.optimizer.records import CriticTrial, Job
from sirius_dspy.optimizer.repair_runs import Note
from sirius_dspy.optimizer.results import CriticResult
from sirius_dspy.optimizer.session import Session
from sirius_dspy.repair.augmenters import Augmenter
from sirius_dspy.repair.critic_training import CRITIC, LearningCritic
from sirius_dspy.tracking.events import StageStarted
from sirius_dspy.training.curate import Row
from sirius_dspy.trajectory import Repair, Trajectory

logger = logging.getLogger(__name__)

RepairMissing = Callable[[Augmenter, Sequence[Trajectory]], None]
"""Repairs those of some failed runs that nothing has repaired yet."""

RepairAgain = Callable[[Augmenter, Sequence[Trajectory], Note], None]
"""Repairs some failed runs, whatever was tried before."""


def teach_critic(
    session: Session,
    iteration: int,
    augmenter: Augmenter,
    failed: Sequence[Trajectory],
    repair_missing: RepairMissing,
    repair_again: RepairAgain,
) -> tuple[Augmenter, CriticResult | None]:
    """Fine-tune the critic of an augmenter, and compare it with the one before.

    Args:
        session: The compile.
        iteration: Number of the iteration; in the first one, there is no advice to learn from.
        augmenter: As the user gave it.
        failed: All runs that the iteration repairs, those that are repaired already among them.
        repair_missing: Repairs with the critic before.
        repair_again: Repairs with the new critic.

    Returns:
        The augmenter with the critic that repairs the other runs, and what was learned; `None` if nothing was.
    """
    critic = augmenter.learning_critic()
    if critic is None:
        return augmenter, None
    previous = _previous(session, critic)
    current = augmenter if previous is critic.lm else augmenter.with_critic(_launch(session, previous))
    if iteration == 1:
        return current, None
    lesson = _Lesson(session, iteration, critic, previous, current)
    result = lesson.teach(failed, repair_missing, repair_again)
    if result is None or not result.kept:
        return current, result
    return augmenter.with_critic(lesson.find(result.lm)), result


@dataclass(frozen=True)
class _Lesson:
    """One fine-tuning of the critic, and its trial."""

    session: Session
    iteration: int
    critic: LearningCritic
    """As the user gave it."""
    previous: dspy.LM
    """The critic that was kept last."""
    current: Augmenter
    """The augmenter with that critic."""

    def teach(
        self, failed: Sequence[Trajectory], repair_missing: RepairMissing, repair_again: RepairAgain
    ) -> CriticResult | None:
        """Train, and compare; `None` if there are too few rows, or no failed runs to compare on."""
        rows = critic_rows(self.session, self.iteration, self.critic)
        if len(rows) < self.critic.training.min_rows:
            self._log_skipped(f"there are {len(rows)} rows, and `min_rows` is {self.critic.training.min_rows}")
            return None
        held_out = self._hold_out(failed, rows)
        repair_missing(self.current, held_out)
        before = self._advised(held_out)
        if not before:
            self._log_skipped("no failed run is left to compare it on")
            return None
        job = self._train(rows)
        advised = [run for run in held_out if run.id in before]
        return self._result(job, self._compare(job, before, advised, repair_again))

    def find(self, model: str) -> dspy.LM:
        """Return the LM of a job, ready to answer."""
        return _launch(self.session, _find(self.session, self.critic, model))

    def _log_skipped(self, reason: str) -> None:
        logger.info("The critic is not fine-tuned in iteration %d: %s.", self.iteration, reason)

    def _hold_out(self, failed: Sequence[Trajectory], rows: Collection[Row]) -> list[Trajectory]:
        """Choose failed runs to compare on; the same ones whenever they are chosen again."""
        seen = {row.example_key for row in rows}
        unseen = [run for run in failed if run.example_key not in seen]
        number = min(len(unseen), max(1, round(self.critic.training.held_out * len(unseen))))
        return random.Random(self._seed).sample(unseen, number)

    def _advised(self, held_out: Sequence[Trajectory]) -> dict[str, bool]:
        """Ids of the runs on which the critic before advised, and whether it repaired them.

        The rungs below it in a ladder may have repaired a run without it.
        """
        first: dict[str, Repair] = {}  # the repair by the critic before is stored first
        for repair in self.session.library.repairs(run=self.session.run, iteration=self.iteration):
            first.setdefault(repair.parent, repair)
        repairs = [first[run.id] for run in held_out if run.id in first]
        return {repair.parent: self._helped(repair) for repair in repairs if self._verdicts(repair)}

    def _helped(self, repair: Repair) -> bool:
        return "repaired" in self._verdicts(repair)

    def _verdicts(self, repair: Repair) -> list[str]:
        """How the critic's own attempts ended; empty if it was not asked."""
        return [attempt.verdict for attempt in repair.attempts if attempt.rung == self.critic.rung]

    def _train(self, rows: Sequence[Row]) -> Job:
        """Fine-tune the critic, from the LM that the trainer's `train_from` asks for."""
        self.session.tracker.on_stage_started(StageStarted(self.iteration, "curate", 1))
        rows_of_critic = critic_set(rows, self.critic.training.max_rows, self._seed)
        keep_sets(self.session, self.iteration, {CRITIC: rows_of_critic})
        is_base = self.session.settings.trainer.train_from == "base"
        base = self.critic.lm if is_base else self.previous
        return train_critic(self.session, self.iteration, rows_of_critic, base)

    def _compare(
        self, job: Job, before: Mapping[str, bool], advised: Sequence[Trajectory], repair_again: RepairAgain
    ) -> CriticTrial:
        """Let the new critic advise on the same runs, unless that is done."""
        trial = self._trial()
        if trial.num_before is not None:
            return trial
        repaired = dict(trial.repaired)

        def note(repair: Repair) -> None:
            repaired[repair.parent] = self._helped(repair)
            self._keep(CriticTrial(repaired=repaired))

        if job.lm != self.previous.model:  # the same rows may give the same weights
            learned = self.current.with_critic(self.find(job.lm), alone=True)
            repair_again(learned, [run for run in advised if run.id not in repaired], note)
        ended = CriticTrial(repaired=repaired, num_before=sum(before[id] for id in repaired))
        self._keep(ended)
        return ended

    def _result(self, job: Job, trial: CriticTrial) -> CriticResult:
        num_before, num_after = trial.num_before or 0, sum(trial.repaired.values())
        is_same = job.lm == self.previous.model
        return CriticResult(
            rows=job.rows,
            lm=job.lm,
            base=job.base,
            previous=self.previous.model,
            tried=len(trial.repaired),
            repaired_before=num_before,
            repaired=num_after,
            kept=is_same or num_after >= max(num_before, 1),
            seconds=job.seconds,
        )

    @property
    def _seed(self) -> int:
        return self.session.settings.seed + self.iteration

    @property
    def _stage(self) -> str:
        return f"critic-{self.iteration}"

    def _trial(self) -> CriticTrial:
        noted = self.session.plan.run_dir.finished(self._stage, CriticTrial)
        return CriticTrial(**(noted or {"repaired": {}}))

    def _keep(self, trial: CriticTrial) -> None:
        self.session.plan.run_dir.finish(self._stage, trial.model_dump())


def _previous(session: Session, critic: LearningCritic) -> dspy.LM:
    """Return the critic that was kept last: the one that the user gave, or one that came out of training."""
    kept = [entry.critic.lm for entry in session.history if entry.critic is not None and entry.critic.kept]
    return _find(session, critic, kept[-1]) if kept else critic.lm


def _find(session: Session, critic: LearningCritic, model: str) -> dspy.LM:
    return restore(session.plan.run_dir, session.settings.trainer, {CRITIC: critic.lm}, CRITIC, model)


def _launch(session: Session, lm: dspy.LM) -> dspy.LM:
    return session.weights.launches.launch(CRITIC, lm)
