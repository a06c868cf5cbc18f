"""The child process that fine-tunes: `python -m sirius_dspy.local.train job.json`.

It writes one JSON object per line to standard output, `{"step", "total", "loss"}` after every step and the measurements
at the end, and writes `adapter/` and `model.gguf` into the job's folder. It exits when its parent dies.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig

from sirius_dspy.local.home import alone, new_folder
from sirius_dspy.local.lora import STOP_WINDOW, LoraOptions, TokenRow, TrainingJob
from sirius_dspy.local.merge import merge
from sirius_dspy.local.trl_internals import SamplingTrainer

IGNORED = -100
"""Label of a token without loss, by PyTorch's convention."""

Report = Callable[[dict[str, Any]], None]


def completion_loss(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    num_tokens: torch.Tensor | int,
) -> torch.Tensor:
    """Sum the next-token loss over the labeled tokens, and divide it by `num_tokens`.

    Only the positions before labeled tokens go through the vocabulary head, which is a fifth of a 135M model.

    Args:
        hidden: `(batch, time, width)`, float; the last layer's output.
        labels: `(batch, time)`, int64; token ids, `IGNORED` for prompt and padding.
        head: Maps `(n, width)` to logits `(n, vocabulary)`.
        num_tokens: Number of labeled tokens in the whole optimizer step, which may have several batches.

    Returns:
        A scalar, in nats per completion token.

    References:
        Supervised fine-tuning step of Algorithm 1, SiriuS (arXiv:2502.04780).
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    logits = head(hidden[:, :-1][learnt]).float()
    return torch.nn.functional.cross_entropy(logits, targets[learnt], reduction="sum") / num_tokens


class LengthBatches(torch.utils.data.Sampler[int]):
    """Puts rows of similar length into a batch, to reduce padding, and shuffles the batches every epoch.

    Args:
        lengths: Number of tokens of each row.
        batch_size: Number of rows per batch.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.lengths)))
        self.random.shuffle(order)  # rows of equal length get different neighbors in every epoch
        order.sort(key=lambda row: self.lengths[row])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        incomplete = batches.pop() if len(batches[-1]) < self.batch_size else []
        self.random.shuffle(batches)
        return iter([row for batch in [*batches, incomplete] for row in batch])


class CompletionTrainer(SamplingTrainer):
    """TRL's trainer with the loss, precision and batches of this package."""

    autocast: torch.dtype | None = None
    """Precision of matrix products; `None` keeps the precision of the weights."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """See `completion_loss`."""
        causal_lm = self.accelerator.unwrap_model(model).get_base_model()
        labels = inputs["labels"]
        num_tokens = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        with torch.autocast(labels.device.type, self.autocast, enabled=self.autocast is not None):
            hidden = causal_lm.model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
            return completion_loss(hidden, labels, causal_lm.lm_head, num_tokens)

    def build_sampler(self, rows: Any) -> LengthBatches:
        """See `LengthBatches`."""
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthBatches(lengths, self.args.per_device_train_batch_size, self.args.seed)


class Reporter(TrainerCallback):
    """Reports the loss of each step, and ends training when the loss is low enough.

    Args:
        report: Called with step, number of steps and loss.
        stop_loss: See `LoraOptions.stop_loss`.
    """

    def __init__(self, report: Report, stop_loss: float) -> None:
        self.report = report
        self.stop_loss = stop_loss
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Report the loss; the trainer calls this after every step."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.report({"step": state.global_step, "total": state.max_steps, "loss": self.losses[-1]})
            recent = self.losses[-STOP_WINDOW:]
            if state.epoch >= 1 and len(recent) == STOP_WINDOW and sum(recent) / STOP_WINDOW < self.stop_loss:
                control.should_training_stop = True


def build_trainer(
    model: Any, tokenizer: Any, rows: Sequence[TokenRow], options: LoraOptions, scratch: Path
) -> CompletionTrainer:
    """Add an adapter to the model, and return a trainer that is ready to `train()`."""
    trainer = CompletionTrainer(
        model=model,
        args=_trainer_settings(options, scratch),
        train_dataset=_dataset(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported already, and printing it would bury error messages
    trainer.autocast = torch.bfloat16 if model.dtype == torch.bfloat16 else None
    return trainer


def _trainer_settings(options: LoraOptions, scratch: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,  # below 1 it is a share of all steps
        weight_decay=options.weight_decay,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,  # `compute_loss` uses its own autocast, because it bypasses the forward that this would wrap
        gradient_checkpointing=False,  # short rows fit into memory, and recomputing would take a third more time
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokenized already
        max_length=None,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _dataset(rows: Sequence[TokenRow]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*row.prompt, *row.completion] for row in rows],
            "labels": [[IGNORED] * len(row.prompt) + list(row.completion) for row in rows],
        }
    )


def fast_precision() -> torch.dtype:
    """Return bfloat16 if the processor multiplies it natively, otherwise float32, since emulation is slower."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if torch.backends.mps.is_available():
        return torch.float32
    abilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else torch.float32


def load_model(gguf: Path, training_copy: Path | None) -> Any:
    """Load the weights as a PyTorch model, from their de-quantized copy if there is to be one."""
    if training_copy is None:
        return _read_gguf(gguf, fast_precision())
    if not training_copy.is_dir():
        keep_training_copy(gguf, training_copy)
    return AutoModelForCausalLM.from_pretrained(
        str(training_copy), dtype=fast_precision(), local_files_only=True, trust_remote_code=False
    )


def keep_training_copy(gguf: Path, folder: Path) -> None:
    """De-quantize a GGUF file to bfloat16 safetensors, which round less than the file's quantization.

    `save_pretrained` refuses a model that was loaded from GGUF, so the two files are written separately.
    """
    model = _read_gguf(gguf, torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    with new_folder(folder) as draft:
        save_file(tensors, str(draft / "model.safetensors"), metadata={"format": "pt"})
        model.config.to_json_file(str(draft / "config.json"), use_diff=True)


def _read_gguf(gguf: Path, dtype: torch.dtype) -> Any:
    """Load de-quantized weights, and clear the mark because of which Transformers would refuse to train them."""
    with alone(gguf) as file:
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    for owner, mark in ((model.config, "quantization_config"), (model, "quantization_method"), (model, "hf_quantizer")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    model.is_quantized = False
    return model


def run(job: TrainingJob, report: Report) -> None:
    """Train, merge, and report the measurements."""
    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True, trust_remote_code=False)
    model = load_model(job.gguf, job.training_copy)
    reporter = Reporter(report, job.options.stop_loss)
    trainer = build_trainer(model, tokenizer, job.rows, job.options, job.folder / "scratch")
    trainer.add_callback(reporter)
    started = time.monotonic()
    trainer.train()
    trained = time.monotonic()
    adapter = job.folder / "adapter"
    trainer.model.save_pretrained(str(adapter))
    tokenizer.save_pretrained(str(adapter))
    merge(job.gguf, adapter, job.folder / "model.gguf", name=job.name)
    report(
        {
            "losses": reporter.losses,
            "tokens": round(trainer.state.epoch * sum(map(len, job.rows))),
            "train_seconds": trained - started,
            "merge_seconds": time.monotonic() - trained,
            "precision": str(model.dtype).removeprefix("torch."),
            "device": str(trainer.args.device),
        }
    )


def end_with_parent() -> None:
    """Exit when standard input closes, which happens whenever the parent dies."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # `sys.stdin.read` would hold a lock at a normal exit
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def claim_output() -> Report:
    """Return what writes reports to standard output, to which nothing else goes: libraries print to standard error."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def report(values: dict[str, Any]) -> None:
        reports.write(json.dumps(values) + "\n")
        reports.flush()

    return report


if __name__ == "__main__":
    end_with_parent()
    run(TrainingJob.from_json(Path(sys.argv[1]).read_text(encoding="utf-8")), claim_output())
