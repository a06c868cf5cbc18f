"""The default trainer, which trains each agent in the way that its LM needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.training.hosted import TRAINING_PRICES, HostedTrainer
from sirius_dspy.training.hosted_job import is_hosted
from sirius_dspy.training.trainers import ProviderTrainer, Trainer, TrainFrom, TrainingRequest

_HOSTED = "hosted"


class SuitableTrainer(Trainer):
    """Trains each agent in the way that its LM needs; the agents of one program may differ.

    `dspy.LM("openai/...")` is fine-tuned by `HostedTrainer`. A provider with a method `trainer()` is asked for its
    trainer, as that of `VLLMLM` is. All others are trained by `ProviderTrainer`, and `LocalLM`s with the same base
    together. Hosted jobs run side by side; jobs on this machine run in the meantime, one after another.

    Args:
        train_from: See `Trainer.train_from`. It applies to all agents, so a trainer that knows only `base`, such as
            that of vLLM, refuses `current`.
        prices: See `HostedTrainer`.
    """

    def __init__(self, *, train_from: TrainFrom = "base", prices: Mapping[str, float] | None = None) -> None:
        self.train_from = train_from
        self._prices = prices  # private, since prices do not change what a compile does

    def trainer_for(self, lm: dspy.LM) -> Trainer:
        """Return the trainer of an LM."""
        own = _own_trainer(lm)
        if own is not None:
            return own()
        return self._hosted if is_hosted(lm) else ProviderTrainer(train_from=self.train_from)

    @property
    def _hosted(self) -> HostedTrainer:
        return HostedTrainer(train_from=self.train_from, prices=self._prices)

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`."""
        kinds = {"train_from": checks.choice("base", "current"), "prices": TRAINING_PRICES}
        checks.check("SuitableTrainer", {**vars(self), "prices": self._prices}, kinds)
        trainer = self.trainer_for(lm)
        if trainer.train_from != self.train_from:
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained from the {self.train_from!r} weights: its LM {lm.model!r} is "
                f"trained by {type(trainer).__name__}, which trains from the {trainer.train_from!r} weights. Set "
                f"`train_from={trainer.train_from!r}`."
            )
        trainer.check(agent, lm)

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`."""
        self.trainer_for(lm).check_rows(agent, lm, num_rows)

    def trains_on_images(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_images`."""
        return self.trainer_for(lm).trains_on_images(lm)

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_tools`."""
        return self.trainer_for(lm).trains_on_tools(lm)

    def price(self, lm: dspy.LM) -> float | None:
        """See `Trainer.price`."""
        return self.trainer_for(lm).price(lm)

    def num_epochs(self, lm: dspy.LM, num_rows: int) -> int:
        """See `Trainer.num_epochs`."""
        return self.trainer_for(lm).num_epochs(lm, num_rows)

    def trained_tokens(self, request: TrainingRequest) -> int:
        """See `Trainer.trained_tokens`."""
        return self.trainer_for(request.lm).trained_tokens(request)

    def has_begun(self, request: TrainingRequest) -> bool:
        """See `Trainer.has_begun`."""
        return self.trainer_for(request.lm).has_begun(request)

    def order(self, requests: Sequence[TrainingRequest]) -> list[TrainingRequest]:
        """See `Trainer.order`; what is trained on this machine comes before hosted jobs."""
        groups = _group(requests).values()
        ordered = [request for group in groups for request in self.trainer_for(group[0].lm).order(group)]
        return sorted(ordered, key=lambda request: is_hosted(request.lm))

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`."""
        return self.trainer_for(request.lm).train(request)

    def train_all(self, requests: Sequence[TrainingRequest]) -> Iterator[dspy.LM]:
        """See `Trainer.train_all`. All hosted jobs are started before anything is trained on this machine."""
        for request in requests:
            self.check_rows(request.agent, request.lm, len(request.rows))
        groups = _group(requests)
        lms = {kind: self.trainer_for(group[0].lm).train_all(group) for kind, group in groups.items()}
        if _HOSTED in groups:
            lms[_HOSTED] = self._hosted.start_all(groups[_HOSTED])
        for request in requests:
            yield next(lms[_kind(request.lm)])

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        return self.trainer_for(lm).restore(lm, model, workdir)


def _own_trainer(lm: dspy.LM) -> Callable[[], Trainer] | None:
    """Return what makes the trainer of the LM's provider, if that has one."""
    own = getattr(getattr(lm, "provider", None), "trainer", None)
    return own if callable(own) else None


def _kind(lm: dspy.LM) -> Hashable:
    """Equal for LMs that one trainer trains."""
    if is_hosted(lm):
        return _HOSTED
    return id(lm.provider) if _own_trainer(lm) else "provider"


def _group(requests: Sequence[TrainingRequest]) -> Mapping[Hashable, list[TrainingRequest]]:
    """Sort requests by who trains them."""
    groups: dict[Hashable, list[TrainingRequest]] = {}
    for request in requests:
        groups.setdefault(_kind(request.lm), []).append(request)
    return groups
