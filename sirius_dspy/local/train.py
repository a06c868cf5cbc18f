"""The child process that fine-tunes: `python -m sirius_dspy.local.train`; see `sirius_dspy.local.child`.

Into the folder of each agent it writes `adapter/` and the merged weights, in the format of the base.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirius_dspy.local.adapter import Adapter
from sirius_dspy.local.child import Report, device, serve
from sirius_dspy.local.decoder import Decoder
from sirius_dspy.local.home import new_folder
from sirius_dspy.local.learning import AddGradients, Learner, Trainable, add_gradients, learn
from sirius_dspy.local.lora import LoraOptions, TrainingJob
from sirius_dspy.local.merge import merge
from sirius_dspy.local.passes import FittingPasses
from sirius_dspy.local.plain_decoder import find_variant
from sirius_dspy.local.unquantized import read_folder, read_gguf, write_model
from sirius_dspy.local.weights import is_gguf


def fast_precision() -> torch.dtype:
    """Return bfloat16 if the device multiplies it natively, otherwise float32, since emulation is slower."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.backends.mps.is_available():
        return torch.float32
    abilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if abilities.get("avx512_bf16") or abilities.get("amx_bf16") else torch.float32


def load_model(path: Path, training_copy: Path | None = None) -> Any:
    """Load weights as a PyTorch model, those of a GGUF file from their de-quantized copy if there is to be one.

    Raises:
        UnreadableModelError: Transformers does not know the architecture.
    """
    if not is_gguf(path):
        return read_folder(path, fast_precision())
    if training_copy is None:
        return read_gguf(path, fast_precision())
    if not training_copy.is_dir():
        keep_training_copy(path, training_copy)
    return AutoModelForCausalLM.from_pretrained(
        str(training_copy), dtype=fast_precision(), local_files_only=True, trust_remote_code=False
    )


def keep_training_copy(gguf: Path, folder: Path) -> None:
    """De-quantize a GGUF file once; reading it takes longer than reading the copy."""
    with new_folder(folder) as draft:
        write_model(gguf, draft)


def run(job: TrainingJob, report: Report) -> dict[str, Any]:
    """Train all agents, merge their adapters, and return the measurements."""
    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True, trust_remote_code=False)
    model = _load_base(job)
    precision = str(model.dtype).removeprefix("torch.")
    adapters, add = add_adapters(model, [task.options for task in job.tasks])
    learners = [
        Learner(adapter, task.rows, partial(_report_step, report, number), task.name)
        for number, (task, adapter) in enumerate(zip(job.tasks, adapters, strict=True))
    ]
    passes = FittingPasses(add, lambda note: report({"note": note}), str(device()))
    started = time.monotonic()
    learn(learners, passes)
    trained = time.monotonic()
    folders = [task.folder for task in job.tasks]
    for folder, learner in zip(folders, learners, strict=True):
        learner.adapter.save(folder / "adapter")
        tokenizer.save_pretrained(str(folder / "adapter"))
    results = [{"losses": learner.losses, "tokens": learner.num_tokens} for learner in learners]
    shared = {
        "train_seconds": trained - started,
        "precision": precision,
        "device": device().type,
        "rows_per_pass": passes.max_rows,
    }
    del model, adapters, add, passes, learners, learner  # merging needs the memory
    write_merged(job.weights, folders, job.name)
    shared["merge_seconds"] = time.monotonic() - trained
    return {"results": [{**result, **shared} for result in results]}


def _load_base(job: TrainingJob) -> Any:
    """Load the model that all agents of a job are trained on."""
    if not job.tasks[0].options.qlora:
        return load_model(job.weights, job.training_copy).to(device())
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=fast_precision(),
    )
    model = read_folder(job.weights, fast_precision(), quantization_config=settings, device_map={"": device()})
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def add_adapters(model: Any, options: Sequence[LoraOptions]) -> tuple[Sequence[Trainable], AddGradients]:
    """Return new adapters, and what adds their gradients: in one pass of a plain decoder, otherwise with PEFT."""
    has_checkpoints = any(each.gradient_checkpointing for each in options)
    if find_variant(model.config.to_dict()) is None and not options[0].qlora:
        decoder = Decoder(model, has_checkpoints=has_checkpoints)
        return [Adapter(decoder, each) for each in options], partial(add_gradients, decoder)
    from sirius_dspy.local.peft_base import PeftBase  # late: importing PEFT takes as long as training on some rows

    base = PeftBase(model, has_checkpoints=has_checkpoints)
    return [base.add_adapter(each) for each in options], base.add_gradients


def write_merged(base: Path, folders: Sequence[Path], name: str) -> None:
    """Write the base plus the adapter in each of these folders beside it, in the format of the base."""
    if is_gguf(base):
        merge(base, {folder / "adapter": folder / "model.gguf" for folder in folders}, name=name)
        return
    from sirius_dspy.local.peft_base import write_merged_folder

    for folder in folders:
        write_merged_folder(base, folder / "adapter", folder)


def _report_step(report: Report, task: int, step: int, total: int, loss: float) -> None:
    report({"task": task, "step": step, "total": total, "loss": loss})


if __name__ == "__main__":
    serve(TrainingJob.from_json, run)
