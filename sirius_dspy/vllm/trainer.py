"""`VLLMTrainer`: trains an adapter for each agent, and lets the server answer with it."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import dspy

from sirius_dspy import checks
from sirius_dspy.errors import TrainingError, UnpreparedProgramError
from sirius_dspy.local.children import Progress, run_job
from sirius_dspy.local.home import new_folder
from sirius_dspy.local.lora import LoraOptions, check_packages
from sirius_dspy.training.trainers import Trainer, TrainFrom, TrainingRequest
from sirius_dspy.vllm.lm import PREFIX, VLLMLM
from sirius_dspy.vllm.server import adapter_name


class Training(Protocol):
    """What trains: a function that writes a PEFT folder."""

    def __call__(self, base: str, rows: Sequence[Any], folder: Path, seed: int, on_progress: Progress) -> None:
        """Train on chat rows, and write the adapter.

        Args:
            base: The base weights; see `VLLMServer`.
            rows: See `TrainingRequest.rows`.
            folder: An empty folder, which receives `adapter_config.json`, `adapter_model.safetensors`, and
                `canary.json` if the adapter is to be proved (`sirius_dspy.vllm.Canary`).
            seed: The seed of the job.
            on_progress: Called with step, total steps and loss.
        """


class VLLMTrainer(Trainer):
    """Trains LoRA adapters for LMs of the class `VLLMLM`, always from the base weights.

    An adapter is named after its content, and is never loaded again under a name that had other weights. It is loaded
    before the first stage that needs it, while no call is in flight, and unloaded when no stage needs it any more.

    Args:
        options: The size of the adapters and how they are trained. `stop_loss` is not used.
        training: A function that trains in place of TRL; see `Training`.

    Examples:
        ```python
        trainer = VLLMTrainer(LoraOptions(rank=16, learning_rate=2e-4))
        ```
    """

    train_from: TrainFrom = "base"

    def __init__(self, options: LoraOptions | None = None, *, training: Training | None = None) -> None:
        self.options = options or LoraOptions()
        self.training = training

    def check(self, agent: str, lm: dspy.LM) -> None:
        """See `Trainer.check`; starts the server, so that it fails before anything is paid for."""
        checks.check("VLLMTrainer", vars(self), {"options": checks.instance(LoraOptions)})
        if not isinstance(lm, VLLMLM):
            raise UnpreparedProgramError(
                f"Agent {agent!r} cannot be trained by VLLMTrainer: its LM is {getattr(lm, 'model', lm)!r}. Give it a "
                f"`VLLMLM(server)`, or freeze it with `SiriuS(frozen=[{agent!r}])`."
            )
        if self.training is None:
            check_packages()
        if self.training is None and lm.server.is_ours and self.options.rank > lm.server.max_lora_rank:
            raise UnpreparedProgramError(
                f"Agent {agent!r} would get an adapter of rank {self.options.rank}, but the server accepts "
                f"{lm.server.max_lora_rank}. Raise `VLLMServer(max_lora_rank=...)`, or lower the rank."
            )
        lm.server.start()

    def check_rows(self, agent: str, lm: dspy.LM, num_rows: int) -> None:
        """See `Trainer.check_rows`."""
        if num_rows == 0:
            raise TrainingError(f"Agent {agent!r} has no training rows.", agent=agent)

    def train(self, request: TrainingRequest) -> dspy.LM:
        """See `Trainer.train`."""
        self.check_rows(request.agent, request.lm, len(request.rows))
        lm = request.lm
        if not isinstance(lm, VLLMLM):
            raise TrainingError(f"VLLMTrainer cannot train {lm.model!r}.", agent=request.agent)
        train = self.training or self._train_with_trl
        adapter = request.workdir / "adapter"
        try:
            if not adapter.exists():  # else an earlier call was killed after training
                with new_folder(adapter) as draft:
                    train(lm.server.base, request.rows, draft, request.seed, request.on_progress)
                    _check_folder(draft)
        except Exception as error:
            raise TrainingError(
                f"The training of agent {request.agent!r} failed: {error} Everything collected so far is kept; run the "
                "same `compile` again to resume.",
                agent=request.agent,
            ) from error
        return lm.with_adapter(adapter_name(request.agent, lm.server.name, adapter), adapter)

    def restore(self, lm: dspy.LM, model: str, workdir: Path) -> dspy.LM:
        """See `Trainer.restore`."""
        if not isinstance(lm, VLLMLM):
            return super().restore(lm, model, workdir)
        adapter = workdir / "adapter"
        name = model.removeprefix(PREFIX)
        digits = adapter_name("", lm.server.name, adapter).rpartition("-")[2]
        if name.rpartition("-")[2] != digits:
            raise TrainingError(
                f"The adapter in {str(adapter)!r} is not the one that was trained as {name!r}: its files are missing "
                "or were changed, or the server has another base. Restore them, or choose another `run_dir`."
            )
        return lm.with_adapter(name, adapter)

    def _train_with_trl(self, base: str, rows: Sequence[Any], folder: Path, seed: int, on_progress: Progress) -> None:
        job = AdapterJob(base, [row["messages"] for row in rows], dataclasses.replace(self.options, seed=seed), folder)
        run_job(job, stop=threading.Event(), hooks=[on_progress])


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """The input of the child process that trains one adapter."""

    module: ClassVar[str] = "sirius_dspy.vllm.train"

    base: str
    rows: Sequence[Sequence[dict[str, str]]]
    options: LoraOptions
    folder: Path

    def to_json(self) -> str:
        """Serialize the job for `sirius_dspy.vllm.train`."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> AdapterJob:
        """Read a job that `to_json` wrote."""
        values = json.loads(text)
        return cls(values["base"], values["rows"], LoraOptions(**values["options"]), Path(values["folder"]))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that vLLM could not load."""
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise TrainingError(f"`training` did not write {', '.join(missing)}.")
