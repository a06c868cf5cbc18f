"""The child process that fine-tunes: `python -m sirius_dspy.local.train`; see `sirius_dspy.local.child`.

Into the folder of each agent it writes `adapter/` and `model.gguf`.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirius_dspy.local.child import Report, device, serve
from sirius_dspy.local.decoder import Decoder
from sirius_dspy.local.home import new_folder
from sirius_dspy.local.learning import Learner, learn
from sirius_dspy.local.lora import TrainingJob
from sirius_dspy.local.merge import merge
from sirius_dspy.local.unquantized import read_folder, read_gguf, write_model
from sirius_dspy.local.weights import is_gguf


def fast_precision() -> torch.dtype:
    """Return bfloat16 if the processor multiplies it natively, otherwise float32, since emulation is slower."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
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
    decoder = Decoder(load_model(job.weights, job.training_copy).to(device()))
    learners = [
        Learner(decoder, task.rows, task.options, partial(_report_step, report, number), task.name)
        for number, task in enumerate(job.tasks)
    ]
    started = time.monotonic()
    learn(decoder, learners)
    trained = time.monotonic()
    folders = [task.folder for task in job.tasks]
    for folder, learner in zip(folders, learners, strict=True):
        learner.adapter.save(folder / "adapter")
        tokenizer.save_pretrained(str(folder / "adapter"))
    results = [{"losses": learner.losses, "tokens": learner.num_tokens} for learner in learners]
    shared = {
        "train_seconds": trained - started,
        "precision": str(decoder.embedding.dtype).removeprefix("torch."),
        "device": decoder.embedding.device.type,
    }
    del decoder, learners, learner  # merging needs the memory
    merge(job.weights, {folder / "adapter": folder / "model.gguf" for folder in folders}, name=job.name)
    shared["merge_seconds"] = time.monotonic() - trained
    return {"results": [{**result, **shared} for result in results]}


def _report_step(report: Report, task: int, step: int, total: int, loss: float) -> None:
    report({"task": task, "step": step, "total": total, "loss": loss})


if __name__ == "__main__":
    serve(TrainingJob.from_json, run)
