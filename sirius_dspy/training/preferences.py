"""`PreferenceTrainer`: fine-tunes on the rows, then on pairs of a failed and a repaired step."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import UnpreparedProgramError
from sirius_dspy.local import PreferenceOptions
from sirius_dspy.local.lora import check_packages
from sirius_dspy.local.models import resolve
from sirius_dspy.local.preferences import TokenPair, prefer, to_pairs
from sirius_dspy.local.provider import LocalProvider, TrainingSettings, adopt, is_finished
from sirius_dspy.local.weights import Weights
from sirius_dspy.training.trainers import ProviderTrainer, Trainer, TrainFrom, TrainingRequest
from sirius_dspy.trajectory import digest

logger = logging.getLogger(__name__)


class PreferenceTrainer(Trainer):
    """Trains a `LocalLM` on its rows, and then by direct preference optimization (DPO) on pairs from repairs.

    A pair is one prompt with the reply of a failed run, and that of the run which repaired this very step. Both stages
    train one adapter, and the fine-tuned one is the reference of the second. Without pairs, the first stage is all.
    Progress counts on through both stages; the loss of the second is that of the pairs.

    Args:
        options: Settings of DPO; its seed is added to that of the job.
        train_kwargs: Settings of the fine-tuning before it; see `ProviderTrainer`.
        train_from: See `Trainer.train_from`.

    References:
        Direct Preference Optimization (arXiv:2305.18290), with TRL's `DPOTrainer`. SiriuS (arXiv:2502.04780) trains on
        successes only.
    """

    wants_pairs = True

    def __init__(
        self,
        options: PreferenceOptions | None = None,
        *,
        train_kwargs: Mapping[str, Any] | None = None,
        train_from: TrainFrom = "base",
    ) -> None:
        self.options = options or PreferenceOptions()
        self.rows_trainer = ProviderTrainer(train_kwargs, train_from=train_from)
        self.train_from = train_from

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`."""
        checks.check("PreferenceTrainer", {"options": self.options}, {"options": checks.instance(PreferenceOptions)})
        if not isinstance(getattr(lm, "provider", None), LocalProvider):
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained on preferences, because its LM {lm.model!r} is not trained on this "
                "machine. Give it a `LocalLM`, use `ProviderTrainer()`, or write the pairs for another trainer with "
                "`sirius-dspy library export --to dpo`."
            )
        self.rows_trainer.check(agent, lm)
        check_packages("trl", "datasets")

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`."""
        self.rows_trainer.check_rows(agent, lm, num_rows)

    def trains_on_tools(self, lm: dspy.LM) -> bool:
        """See `Trainer.trains_on_tools`."""
        return self.rows_trainer.trains_on_tools(lm)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        return self.rows_trainer.restore(lm, model, workdir)

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`; an interrupt ends the child process that trains."""
        base = resolve(request.lm.model)
        pairs = to_pairs(base, request.pairs, self.options)
        if not pairs:
            logger.info("Agent %r has no preference pairs, so it is trained on its rows alone.", request.agent)
            return self.rows_trainer.train(request)
        key = self._key(request, base)
        if not is_finished(request.workdir, key):
            self._train_twice(request, base, pairs, key)
        return request.lm.copy(model=adopt(base, request.workdir).id)

    def _train_twice(self, request: TrainingRequest, base: Weights, pairs: list[TokenPair], key: str) -> None:
        """Train on the rows into a folder beside the job's, and go on from its adapter."""
        first = request.workdir.with_name(f".{request.workdir.name}.rows")
        done = 0

        def count(step: int, total: int, loss: float) -> None:
            nonlocal done
            done = step
            request.on_progress(step, total, loss)

        def count_on(step: int, total: int, loss: float) -> None:
            request.on_progress(done + step, done + total, loss)

        self.rows_trainer.train(dataclasses.replace(request, workdir=first, on_progress=count))
        options = dataclasses.replace(self.options, seed=self.options.seed + request.seed)
        device = cast(LocalProvider, request.lm.provider).device
        prefer(base, first / "adapter", pairs, options, request.workdir, key, count_on, device)
        shutil.rmtree(first, ignore_errors=True)

    def _key(self, request: TrainingRequest, base: Weights) -> str:
        """Return the content key of both stages, by which a finished job is found again."""
        kwargs = {**request.lm.train_kwargs, **(self.rows_trainer.train_kwargs or {}), "seed": request.seed}
        settings = TrainingSettings.read(kwargs, cast(LocalProvider, request.lm.provider).options)
        return digest(
            {
                "base": base.digits,
                "rows": [dict(row) for row in request.rows],
                "options": dataclasses.asdict(settings.options),
                "pairs": [dict(pair) for pair in request.pairs],
                "preferences": dataclasses.asdict(self.options),
            }
        )
