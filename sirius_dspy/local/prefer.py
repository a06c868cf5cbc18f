"""The child process of preference optimization: `python -m sirius_dspy.local.prefer`; see `sirius_dspy.local.child`.

Training goes on from a fine-tuned adapter, which is also the reference: TRL keeps a frozen copy of it beside the one
that it trains.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig

from sirius_dspy.local.child import Report, serve
from sirius_dspy.local.preferences import PreferenceJob, PreferenceOptions, TokenPair
from sirius_dspy.local.train import load_model, write_merged
from sirius_dspy.local.trl_internals import PairTrainer


class Reporter(TrainerCallback):
    """Reports the loss of each step, and keeps how much better the chosen replies are rated than the rejected ones.

    Args:
        report: Called with step, number of steps and loss.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.losses: list[float] = []
        self.margins: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Report the loss; the trainer calls this after every step."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.margins.append(float(logs["rewards/margins"]))
            self.report({"step": state.global_step, "total": state.max_steps, "loss": self.losses[-1]})


def build_trainer(
    model: PeftModel, tokenizer: Any, pairs: Sequence[TokenPair], options: PreferenceOptions, scratch: Path
) -> PairTrainer:
    """Return a trainer that is ready to `train()` the adapter of a model."""
    trainer = PairTrainer(
        model=model,
        args=_trainer_settings(options, scratch, is_bfloat16=model.dtype == torch.bfloat16),
        train_dataset=_dataset(pairs),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # progress is reported already, and printing it would bury error messages
    return trainer


def _trainer_settings(options: PreferenceOptions, scratch: Path, *, is_bfloat16: bool) -> DPOConfig:
    has_sft = options.sft_weight > 0
    return DPOConfig(
        output_dir=str(scratch),
        beta=options.beta,
        loss_type=["sigmoid", "sft"] if has_sft else ["sigmoid"],
        loss_weights=[1.0, options.sft_weight] if has_sft else None,
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,  # below 1 it is a share of all steps
        weight_decay=0.0,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=is_bfloat16,
        use_cpu=is_bfloat16 and not torch.cuda.is_available(),  # else Transformers takes bfloat16 for a GPU's
        gradient_checkpointing=False,  # short rows fit into memory, and recomputing would take a third more time
        max_length=None,  # long pairs were left out before
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _dataset(pairs: Sequence[TokenPair]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [list(pair.prompt) for pair in pairs],
            "chosen_ids": [list(pair.chosen) for pair in pairs],
            "rejected_ids": [list(pair.rejected) for pair in pairs],
        }
    )


def run(job: PreferenceJob, report: Report) -> dict[str, Any]:
    """Train, merge, and return the measurements."""
    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True, trust_remote_code=False)
    base = load_model(job.weights, job.training_copy)
    model = PeftModel.from_pretrained(base, str(job.adapter), is_trainable=True)
    reporter = Reporter(report)
    trainer = build_trainer(model, tokenizer, job.pairs, job.options, job.folder / "scratch")
    trainer.add_callback(reporter)
    started = time.monotonic()
    trainer.train()
    trained = time.monotonic()
    adapter = job.folder / "adapter"
    trainer.model.save_pretrained(str(adapter), selected_adapters=["default"])  # without the reference
    tokenizer.save_pretrained(str(adapter))
    write_merged(job.weights, [job.folder], job.name)
    return {
        "losses": reporter.losses,
        "margins": reporter.margins,
        "train_seconds": trained - started,
        "merge_seconds": time.monotonic() - trained,
        "precision": str(base.dtype).removeprefix("torch."),
        "device": str(trainer.args.device),
    }


if __name__ == "__main__":
    serve(PreferenceJob.from_json, run)
