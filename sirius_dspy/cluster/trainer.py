"""`RayTrainer`: fine-tunes the agents on the machines of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy

from sirius_dspy import checks
from sirius_dspy.cluster.job import OPTIONS, Job
from sirius_dspy.cluster.task import pack_job, run_job
from sirius_dspy.errors import SettingsError, TrainingError, UnpreparedProgramError
from sirius_dspy.executors.connection import check_options, connected
from sirius_dspy.executors.packing import pack
from sirius_dspy.training.hosted_job import is_hosted
from sirius_dspy.training.suitable import SuitableTrainer
from sirius_dspy.training.trainers import Trainer, TrainFrom, TrainingRequest

LOOK_UP_S = 1.0
"""How often to look whether a job still waits for a machine."""


class RayTrainer(Trainer):
    """Trains each agent on a machine of a Ray cluster, all agents at the same time.

    Another trainer does the work there. The weights come back into the run directory through Ray, so the machines need
    no file system in common. A job whose machine is lost begins again on another one; what it had reported before is
    not reported twice. The machines need the same packages as for `RayExecutor`, and the base weights of the agents.

    The weights are those of the other trainer, so a compile may be resumed with it in place of this one.

    Args:
        trainer: Does the work; the default is `SuitableTrainer()`. OpenAI's jobs are refused, because they run
            elsewhere anyway, and so is what cannot be sent to another process, such as a `VLLMLM`.
        address: Of the cluster; see `RayExecutor`.
        resources: What each job reserves, as Ray's `.options` takes it. The default is one GPU, and no CPU, because the
            workers of a `RayExecutor` keep their CPUs while agents are trained.
        agents: The resources of single agents, by name, in place of `resources`.
        max_restarts: How many times each job may begin again because its machine was lost.
        start_s: Seconds that the jobs wait for a first machine, e.g. until the cluster has started one, before the
            compile stops.

    Examples:
        ```python
        trainer = RayTrainer(address="auto", agents={"judge": {"num_gpus": 2, "num_cpus": 0}})
        ```
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        address: str | None = None,
        resources: Mapping[str, Any] | None = None,
        agents: Mapping[str, Mapping[str, Any]] | None = None,
        max_restarts: int = 3,
        start_s: float = 600.0,
    ) -> None:
        self.trainer = SuitableTrainer() if trainer is None else trainer
        self.address = address
        self.resources = {"num_gpus": 1, "num_cpus": 0} if resources is None else resources
        self.agents = agents or {}
        self.max_restarts = max_restarts
        self.start_s = start_s

    @property
    def train_from(self) -> TrainFrom:  # type: ignore[override]  # of the other trainer
        """See `Trainer.train_from`."""
        return self.trainer.train_from

    @property
    def wants_pairs(self) -> bool:  # type: ignore[override]  # of the other trainer
        """See `Trainer.wants_pairs`."""
        return self.trainer.wants_pairs

    @property
    def trains_like(self) -> Trainer:
        """The trainer that does the work."""
        return self.trainer.trains_like

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`. Nothing is started on the cluster; its machines check for themselves before they train.

        Args:
            agent: Its name.
            lm: Where its training starts.

        Raises:
            SettingsError: A setting is of the wrong kind, or Ray does not know a resource.
            MissingDependencyError: Ray is not installed here.
            UnpreparedProgramError: The LM cannot be trained on a cluster, or not at all.
        """
        checks.check("RayTrainer", vars(self), _KINDS)
        check_options(run_job, self._reserved(agent), "resources", OPTIONS)
        if is_hosted(lm):
            raise UnpreparedProgramError(
                f"Agent {agent!r} is fine-tuned by the provider of {lm.model!r}, which takes no machine of a cluster. "
                "Leave out `RayTrainer`, or give the agent an LM whose weights are trained here."
            )
        try:
            pack((self.trainer, lm))
        except Exception as error:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained on a cluster, because its LM {lm.model!r} or the trainer "
                f"{type(self.trainer).__name__} cannot be sent to another process: {type(error).__name__}: {error} "
                "Leave out `RayTrainer` to train it on this machine."
            ) from error
        self.trainer.check(agent, lm)

    def check_agents(self, agents: Collection[str]) -> None:
        """See `Trainer.check_agents`."""
        if unknown := sorted(set(self.agents) - set(agents)):
            raise SettingsError(
                f"`agents` of RayTrainer names {unknown}, but the agents that are trained are {sorted(agents)}."
            )
        self.trainer.check_agents(agents)

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`."""
        self.trainer.check_rows(agent, lm, num_rows)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_images`."""
        return self.trainer.trains_on_images(lm)

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_tools`."""
        return self.trainer.trains_on_tools(lm)

    def price(self, lm: dspy.LM) -> float | None:
        """See `Trainer.price`."""
        return self.trainer.price(lm)

    def num_epochs(self, lm: dspy.LM, num_rows: int) -> int:
        """See `Trainer.num_epochs`."""
        return self.trainer.num_epochs(lm, num_rows)

    def trained_tokens(self, request: TrainingRequest) -> int:
        """See `Trainer.trained_tokens`."""
        return self.trainer.trained_tokens(request)

    def has_begun(self, request: TrainingRequest) -> bool:
        """See `Trainer.has_begun`."""
        return self.trainer.has_begun(request)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        return self.trainer.restore(lm, model, workdir)

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`."""
        (lm,) = self.train_all([request])
        return lm

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """See `Trainer.train_all`. Jobs still under way when one fails, or at an interrupt, are ended."""
        for request in requests:
            self.check_rows(request.agent, request.lm, len(request.rows))
        if not requests:
            return
        with connected(self.address) as ray:
            jobs: list[Job] = []
            try:
                jobs += (self._begin(ray, request) for request in requests)
                for job in jobs:
                    self._wait_for(job, jobs, ray)
                    yield self.trainer.restore(job.request.lm, job.model, job.request.workdir)
            finally:
                for job in jobs:
                    job.end()

    def _begin(self, ray: ModuleType, request: TrainingRequest) -> Job:
        return Job(ray, request, pack_job(self.trainer, request), self._reserved(request.agent), self.max_restarts)

    def _reserved(self, agent: str) -> Mapping[str, Any]:
        return self.agents.get(agent, self.resources)

    def _wait_for(self, awaited: Job, jobs: Sequence[Job], ray: ModuleType) -> None:
        """Take the messages of all jobs until one is done.

        Raises:
            TrainingError: It failed, or no job finds a machine.
        """
        served = time.monotonic()
        while not awaited.is_done:
            under_way = {job.stream: job for job in jobs if not job.is_done}
            ready, _ = ray.wait(list(under_way), num_returns=len(under_way), timeout=0.0)
            if not ready:
                ready, _ = ray.wait(list(under_way), timeout=LOOK_UP_S)
            for stream in ready:
                under_way[stream].take()
            if any(job.has_machine and not job.is_done for job in jobs):
                served = time.monotonic()
            elif time.monotonic() - served > self.start_s and not awaited.is_done:
                raise self._no_machine(awaited)
        if awaited.error is not None:
            raise awaited.error

    def _no_machine(self, job: Job) -> TrainingError:
        return TrainingError(
            f"In {self.start_s:g} s the Ray cluster found no machine for the fine-tuning of agent "
            f"{job.request.agent!r}, which reserves {job.resources}. Workers of a `RayExecutor` keep what they reserve "
            "meanwhile; `ray status` says what is free. Lower `resources`, or add machines, then run the same "
            "`compile` again to resume.",
            agent=job.request.agent,
        )


_RESOURCES = checks.table("options of a Ray task, such as `{'num_gpus': 1}`")

_KINDS = {
    "trainer": checks.instance(Trainer, hint=", such as `SuitableTrainer()`"),
    "address": checks.optional(checks.TEXT),
    "resources": _RESOURCES,
    "agents": checks.table(
        "agent names with options of a Ray task, such as `{'judge': {'num_gpus': 2}}`", _RESOURCES.fits
    ),
    "max_restarts": checks.whole(0),
    "start_s": checks.number(above=0),
}
