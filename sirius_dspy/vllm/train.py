"""Trains one LoRA adapter with TRL, in a process of its own: `python -m sirius_dspy.vllm.train`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sirius_dspy.local.child import Report, device, serve
from sirius_dspy.vllm.canary import Canary
from sirius_dspy.vllm.trainer import AdapterJob

_CANARY_ROWS = 8
"""Rows out of which the one becomes the canary that training changed most."""


def run(job: AdapterJob, report: Report) -> dict[str, Any]:
    """Train and write the adapter with its canary."""
    options = job.options
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    precision = torch.bfloat16 if device().type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=precision)
    rows = [{"prompt": row[:-1], "completion": row[-1:]} for row in job.rows]
    with tempfile.TemporaryDirectory(prefix="sirius-vllm-") as scratch:
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=options.warmup,  # below 1, a share of all steps
            weight_decay=options.weight_decay,
            max_length=options.max_length,
            seed=options.seed,
            bf16=precision == torch.bfloat16,
            gradient_checkpointing=options.gradient_checkpointing,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        lora = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        trainer = SFTTrainer(
            model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[_Steps(report)],
        )
        trainer.train()
    tuned = trainer.model.eval()
    tuned.save_pretrained(str(job.folder))
    choose_canary(tuned, tokenizer, job.rows[:_CANARY_ROWS]).write(job.folder)
    return {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def choose_canary(model: Any, tokenizer: Any, rows: Sequence[Any]) -> Canary:
    """Score rows under the adapter and under the base, and return the one with the largest difference."""
    found = []
    for row in rows:
        text = tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        completion = tokenizer(row[-1]["content"], add_special_tokens=False)["input_ids"]
        trained = _score(model, prompt, completion)
        with model.disable_adapter():
            base = _score(model, prompt, completion)
        found.append(Canary(tuple(prompt), tuple(completion), trained, base))
    return max(found, key=lambda canary: canary.gap)


def _score(model: Any, prompt: list[int], completion: list[int]) -> tuple[float, ...]:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + completion], device=model.device)).logits[0].float()
    nats = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return tuple(nats[range(len(completion)), completion].tolist())


class _Steps(TrainerCallback):
    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        """Report a step."""
        if logs and "loss" in logs:
            self._report({"task": 0, "step": state.global_step, "total": state.max_steps, "loss": logs["loss"]})


if __name__ == "__main__":
    serve(AdapterJob.from_json, run)
