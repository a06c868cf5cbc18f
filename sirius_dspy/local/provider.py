"""Fine-tunes local weights as a DSPy `Provider`: each call of `lm.finetune` writes one new weight folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainingStatus

from sirius_dspy.errors import ModelNotFoundError, TrainingError, UnreadableModelError
from sirius_dspy.local import lora
from sirius_dspy.local.chat import load_chat, share_chat
from sirius_dspy.local.children import Progress, end_idle, run_job
from sirius_dspy.local.devices import Device, check_device, count_gpus, free_gpu_memory, free_memory, training_gpus
from sirius_dspy.local.home import home
from sirius_dspy.local.lora import LoraOptions, TokenRow
from sirius_dspy.local.memory import free_device_memory
from sirius_dspy.local.models import locate, new_name, register, resolve
from sirius_dspy.local.serving import engines, pool_key
from sirius_dspy.local.side_by_side import SideBySide, deal
from sirius_dspy.local.weights import Weights
from sirius_dspy.trajectory import digest

_TRAINING_BYTES = 4 << 30
"""Memory that training a small model needs besides its weights. If less is free, what waits is ended or unloaded."""


class LocalTrainingJob(TrainingJob):
    """A future for the fine-tuned LM, with a status and a way to cancel it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state = TrainingStatus.not_started
        self.stop = threading.Event()

    def status(self) -> TrainingStatus:
        """Return the status of the job."""
        return self.state

    def cancel(self) -> bool:
        """Stop training, so that `result()` is a `TrainingError`; return whether the job was still running.

        This does not call `Future.cancel`, because DSPy's thread always sets a result, which a cancelled future
        refuses.
        """
        self.stop.set()
        return not self.done()


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The settings that `train_kwargs` may contain."""

    options: LoraOptions
    output_dir: Path | None = None
    """The weight folder to write; by default, a folder below the home folder, named after the job's content."""
    on_progress: Progress | None = None

    @classmethod
    def read(cls, train_kwargs: Mapping[str, Any], defaults: LoraOptions) -> TrainingSettings:
        """Read settings from keyword arguments.

        Raises:
            TypeError: A name is unknown.
            ValueError: A number is outside its range.
        """
        rest = dict(train_kwargs)
        output_dir = rest.pop("output_dir", None)
        on_progress = rest.pop("on_progress", None)
        folder = None if output_dir is None else Path(output_dir).expanduser().absolute()
        return cls(defaults.replace(rest), folder, on_progress)


class LocalProvider(Provider):
    """Trains LoRA adapters and merges them. It holds only settings, so all copies of an LM share it.

    `train_kwargs` may hold `output_dir`, `on_progress` (step, number of steps, loss) and any field of `LoraOptions`.

    Args:
        options: Defaults for settings that are not in `train_kwargs`.
        device: Device of the engines of this provider's LMs; see `LocalLM`. `cuda:1` is that of training, too.
    """

    writes_weights: ClassVar[bool] = True
    """An optimizer may pass `output_dir` in `train_kwargs` to set the weight folder."""
    weighs_rows: ClassVar[bool] = True
    """Rows may have a `weight`, with which their loss is multiplied; only the ratios of the weights matter."""
    loads_when_asked: ClassVar[bool] = True
    """Weights are loaded at the first call at the latest, so nothing must be launched. `launch` only loads them
    earlier, and several threads may call it at once, on the LMs of a program."""

    def __init__(self, options: LoraOptions | None = None, device: Device | None = None) -> None:
        super().__init__()
        self.options = options or LoraOptions()
        self.device = device
        self.finetunable = True
        self.TrainingJob = LocalTrainingJob

    @property
    def trains_like(self) -> Hashable:
        """Equal for providers that train in the same way, so that agents with LMs of their own are trained together."""
        return type(self), self.options, self.device

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalProvider:
        return self

    def check(self) -> None:
        """Check that training can start on this machine.

        Raises:
            MissingDependencyError: A package is not installed.
            SettingsError: There is no GPU of the number of `device`.
        """
        check_device(self.device)
        lora.check_packages()
        lora.check_bitsandbytes(self.options)

    def trains_on_tools(self, model: str) -> bool:
        """Return whether rows may hold native tool calls: the model's chat template must write them."""
        return load_chat(resolve(model)).renders_tools

    def launch(  # type: ignore[override]  # DSPy declares it static and calls it on the instance
        self, lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Load the LM's weights now and not at its first call. Does nothing if they are loaded."""
        with engines().lend(pool_key(lm.model, self.device)):
            pass

    def kill(  # type: ignore[override]  # as above
        self, lm: dspy.LM, launch_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Unload the LM's weights after its current calls. Does nothing if they are not loaded."""
        engines().unload(pool_key(lm.model, self.device))

    def restore(self, model: str, workdir: Path) -> None:
        """Let weights be found that another machine has trained, or that were moved with their run directory.

        Args:
            model: Their id; if it is not that of the folder, the LM says so when it is first used.
            workdir: Their folder.
        """
        with suppress(ModelNotFoundError, UnreadableModelError):
            register(workdir)

    def finetune(  # type: ignore[override]  # as above; the job is of the class that `TrainingJob` names
        self,
        job: LocalTrainingJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: Any,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Train and return the id of the new weights; DSPy calls this in the job's thread.

        Raises:
            TrainingError: There was nothing to train on, or the job failed or was cancelled.
        """
        job.state = TrainingStatus.running
        try:
            new_id = self._finetune(job, model, train_data, train_data_format, train_kwargs or {})
        except BaseException as error:
            job.state = TrainingStatus.cancelled if job.stop.is_set() else TrainingStatus.failed
            if isinstance(error, Exception):
                raise
            raise TrainingError(f"The training failed with {error!r}.") from error  # DSPy would never resolve the job
        job.state = TrainingStatus.succeeded
        return new_id

    def finetune_all(
        self,
        model: str,
        train_data: Sequence[Sequence[Mapping[str, Any]]],
        train_kwargs: Sequence[Mapping[str, Any]],
        stop: threading.Event | None = None,
    ) -> list[str]:
        """Train one adapter on each of several sets of chat rows, in one pass over the weights.

        Each one becomes what training it alone gives, up to rounding: a product of more rows may sum in another order.
        With several GPUs, the adapters are dealt to them and trained side by side.

        Args:
            model: The id of the weights from which all start.
            train_data: The rows of each adapter.
            train_kwargs: The settings of each adapter.
            stop: Event that ends the training.

        Returns:
            The ids of the new weights.

        Raises:
            TrainingError: There was nothing to train on, or the job failed or was cancelled. Then none is kept, except
                those that were trained on another GPU; the same call finds them.
            SettingsError: `qlora` was set for a GGUF file.
            MissingDependencyError: A package is not installed.
        """
        self.check()
        base = resolve(model)
        settings = [TrainingSettings.read(kwargs, self.options) for kwargs in train_kwargs]
        for each in settings:
            lora.check_quantization(base, each.options)
            lora.check_bitsandbytes(each.options)
        orders = [_Order.build(base, rows, each) for rows, each in zip(train_data, settings, strict=True)]
        missing = [order for order in orders if not is_finished(order.folder, order.key)]
        for is_quantized in (False, True):  # the agents of one pass share the base as it is in memory
            together = [order for order in missing if order.settings.options.qlora is is_quantized]
            if together:
                _train_all(base, together, stop or threading.Event(), training_gpus(self.device))
        return [adopt(base, order.folder).id for order in orders]

    def _finetune(
        self,
        job: LocalTrainingJob,
        model: str,
        rows: Sequence[Mapping[str, Any]],
        form: Any,
        train_kwargs: Mapping[str, Any],
    ) -> str:
        if getattr(form, "value", form) not in ("chat", None):
            raise TypeError(f"The training data format is {form!r}; a local model trains on 'chat' rows.")
        (new_id,) = self.finetune_all(model, [rows], [train_kwargs], job.stop)
        return new_id


@dataclass(frozen=True, slots=True)
class _Order:
    """One adapter to train."""

    rows: Sequence[TokenRow]
    num_dropped: int
    settings: TrainingSettings
    folder: Path
    key: str

    @classmethod
    def build(cls, base: Weights, rows: Sequence[Mapping[str, Any]], settings: TrainingSettings) -> _Order:
        """Tokenize the rows, and derive the key and the folder from their content.

        Raises:
            TrainingError: No row can be trained on.
        """
        chat = load_chat(base)
        tokens = [lora.to_tokens(chat, row) for row in rows]
        kept = lora.drop_long_rows(tokens, min(settings.options.max_length, chat.context))
        key = digest({"base": base.digits, "rows": list(rows), "options": dataclasses.asdict(settings.options)})
        return cls(kept, len(tokens) - len(kept), settings, settings.output_dir or home("models", key[:16]), key)

    @property
    def draft(self) -> Path:
        """Where the folder is written before it is complete."""
        return self.folder.with_name(f".{self.folder.name}.draft")

    def finish(self, base: Weights, measured: Mapping[str, Any], seconds: float) -> None:
        """Write `training.json`, and let the folder appear."""
        record = {
            "key": self.key,
            "base": base.id,
            "options": dataclasses.asdict(self.settings.options),
            "num_rows": len(self.rows),
            "num_dropped": self.num_dropped,
            "completion_tokens": sum(len(row.completion) for row in self.rows),
            **measured,
            "seconds": seconds,
        }
        (self.draft / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        self.draft.rename(self.folder)


def adopt(base: Weights, folder: Path) -> Weights:
    """Add the weights that a job wrote to this machine's index."""
    new = register(folder)
    share_chat(base, new)
    return new


def is_finished(folder: Path, key: str) -> bool:
    """Return whether the same job has already finished, e.g. in a run that was killed right after it.

    Raises:
        TrainingError: The folder holds something else.
    """
    if not folder.exists():
        return False
    try:
        done = json.loads((folder / "training.json").read_text(encoding="utf-8")).get("key") == key
    except (OSError, json.JSONDecodeError):
        done = False
    with suppress(ModelNotFoundError, UnreadableModelError):
        if done and locate(folder).exists():
            return True
    raise TrainingError(
        f"The output folder {str(folder)!r} exists and was not written by this job. "
        "Pass another `output_dir`, or move the folder away."
    )


def _train_all(base: Weights, orders: Sequence[_Order], stop: threading.Event, gpus: Sequence[int | None]) -> None:
    """Train on one device in one pass, or on several GPUs side by side."""
    hands = deal(orders, lambda order: sum(map(len, order.rows)), len(gpus)) if len(gpus) > 1 else [list(orders)]
    for gpu, _ in zip(gpus, hands, strict=False):
        make_room(base, gpu)
    if len(hands) == 1:
        _train(base, hands[0], stop, gpus[0], [order.settings.on_progress for order in hands[0]])
        return
    together = SideBySide(stop)
    together.run(
        [
            partial(_train, base, hand, stop, gpu, [together.relay(order.settings.on_progress) for order in hand])
            for gpu, hand in zip(gpus, hands, strict=False)
        ]
    )


def _train(
    base: Weights,
    orders: Sequence[_Order],
    stop: threading.Event,
    gpu: int | None,
    hooks: Sequence[Progress | None],
) -> None:
    """Train into temporary folders and rename them at the end, so that the folders are always complete."""
    started = time.monotonic()
    try:
        for order in orders:
            shutil.rmtree(order.draft, ignore_errors=True)  # leftover of a killed run
            order.draft.mkdir(parents=True)
        job = lora.TrainingJob(
            weights=base.path,
            training_copy=training_copy(base),
            tokenizer=load_chat(base).folder,
            tasks=[lora.TrainingTask(order.rows, order.settings.options, order.draft) for order in orders],
            name=new_name(base.id),
        )
        measured = run_job(job, stop=stop, hooks=hooks, gpu=gpu)
        for order, result in zip(orders, measured["results"], strict=True):
            order.finish(base, result, time.monotonic() - started)
    finally:
        for order in orders:
            shutil.rmtree(order.draft, ignore_errors=True)


def make_room(base: Weights, gpu: int | None = None) -> None:
    """Unload idle engines if too little memory is free for training.

    Args:
        base: What is trained.
        gpu: Where; `None` means the first GPU, if there is one.
    """
    needed = _TRAINING_BYTES + (6 if base.is_gguf else 3) * base.num_bytes
    if free_memory() < needed:
        end_idle()
    if free_memory() < needed:
        engines().unload_idle()
    if count_gpus():
        free_device_memory()  # what this process keeps for later, the training process cannot have
        if free_gpu_memory(gpu or 0) < needed:
            engines().unload_idle()


def training_copy(base: Weights) -> Path | None:
    """Return where to keep a copy for training. Fine-tuned weights are rarely trained again, so they get none."""
    return home("training", base.digits) if base.is_gguf and not (base.folder / "training.json").exists() else None
