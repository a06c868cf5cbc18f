"""The wait for the end of a hosted job, which outlasts a server that is away for a while."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sirius_dspy.training.hosted_job import HostedJob, id_in
from sirius_dspy.training.refusals import explain, is_denial, is_transient

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob

ENDED = ("succeeded", "failed", "cancelled")
"""States of a job that no longer change."""

_FIRST_PAUSE_S = 0.5
"""A small server may be done before a long pause is over; the pause doubles up to `poll_s`."""

_LONGEST_PAUSE_S = 60.0

_DENIALS = 3
"""After as many looks at which the server does not know the job, it is believed."""

_DENIAL_PAUSE_S = 15.0
"""Shortest pause after such a look: a gateway may send a few requests to the wrong place."""


@dataclass
class Wait:
    """Looks at one job until it has ended.

    Args:
        job: It.
        poll_s: See `HostedTrainer`, as for the next two.
        patience_s: How long the server may be out of reach.
        longest_s: How long after its creation the job is waited for.
    """

    job: HostedJob
    poll_s: float
    patience_s: float
    longest_s: float | None

    def __post_init__(self) -> None:
        self._usual_pause_s = self._pause_s = min(_FIRST_PAUSE_S, self.poll_s)
        self._lost_at: float | None = None
        self._denials = 0

    def until_end(self) -> FineTuningJob:
        """Return the job once it has ended.

        Raises:
            TrainingError: The server refuses to tell, does not know the job, or was away for too long; or the job
                takes too long.
        """
        while True:
            found = self._look()
            if found is not None:
                self.job.report()
                if found.status in ENDED:
                    return found
            left_s = self._left_s()
            if left_s <= 0:
                raise self.job.failure(
                    f"it has not ended after {self.longest_s:g} seconds, and goes on at the server. "
                    "`sirius-dspy jobs RUN_DIR --cancel ID` ends it. To wait longer, raise `longest_s`, which "
                    "`accept_changes=['trainer']` allows."
                )
            time.sleep(min(self._pause_s, left_s))

    def _left_s(self) -> float:
        return math.inf if self.longest_s is None else self.job.record.created + self.longest_s - time.time()

    def _look(self) -> FineTuningJob | None:
        """Return the job as it is now; `None` if the server does not tell at the moment."""
        import openai

        try:
            found = self.job.client.fine_tuning.jobs.retrieve(self.job.record.job)
            id_in(found)
        except (openai.OpenAIError, ValueError) as error:  # the latter for a body that is no JSON
            if is_denial(error):
                self._count_denial(error)
            elif is_transient(error) or isinstance(error, openai.NotFoundError):
                self._count_absence(error)
            else:
                raise self.job.failure(explain(error)) from error
            return None
        self._heard()
        return found

    def _heard(self) -> None:
        self._lost_at = None
        self._denials = 0
        self._pause_s = self._usual_pause_s
        self._usual_pause_s = min(2 * self._usual_pause_s, self.poll_s)

    def _count_denial(self, error: Exception) -> None:
        self._denials += 1
        self._pause_s = max(_DENIAL_PAUSE_S, self.poll_s)
        if self._denials < _DENIALS:
            return
        self.job.record.is_denied = True
        self.job.write()
        raise self.job.failure(
            f"{explain(error)} It said so {_DENIALS} times. If your key is one of another project, set the right one "
            "first: the next call looks for the job on its training file and, if there is none, starts and pays for "
            "another one."
        ) from error

    def _count_absence(self, error: Exception) -> None:
        self._lost_at = self._lost_at or time.monotonic()
        self._pause_s = min(2 * self._pause_s, max(_LONGEST_PAUSE_S, self.poll_s))
        if time.monotonic() - self._lost_at > self.patience_s:
            raise self.job.failure(
                f"the server has not answered for {self.patience_s:g} seconds. The last time: {explain(error)}"
            ) from error
