"""The child process that fine-tunes: `python -m sirius_dspy.local.train job.json`.

It writes one JSON object per line to standard output: `{"task", "step", "total", "loss"}` after every step of an agent,
and the measurements of all agents at the end. Into the folder of each agent it writes `adapter/` and `model.gguf`. It
exits when its parent dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirius_dspy.local.decoder import Decoder
from sirius_dspy.local.home import alone, new_folder
from sirius_dspy.local.learning import Learner, learn
from sirius_dspy.local.lora import TrainingJob, TrainingTask
from sirius_dspy.local.merge import merge

Report = Callable[[dict[str, Any]], None]


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


def device() -> torch.device:
    """Return the device on which training is fastest."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def run(job: TrainingJob, report: Report) -> None:
    """Train all agents, merge their adapters, and report the measurements."""
    tokenizer = AutoTokenizer.from_pretrained(str(job.tokenizer), local_files_only=True, trust_remote_code=False)
    decoder = Decoder(load_model(job.gguf, job.training_copy).to(device()))
    learners = [
        Learner(decoder, task.rows, task.options, partial(_report_step, report, number))
        for number, task in enumerate(job.tasks)
    ]
    started = time.monotonic()
    learn(decoder, learners)
    seconds = time.monotonic() - started
    precision = str(decoder.embedding.dtype).removeprefix("torch.")
    shared = {"train_seconds": seconds, "precision": precision, "device": decoder.embedding.device.type}
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # merging is work for one core
        results = list(threads.map(partial(_keep, job, tokenizer), job.tasks, learners))
    report({"results": [{**result, **shared} for result in results]})


def _report_step(report: Report, task: int, step: int, total: int, loss: float) -> None:
    report({"task": task, "step": step, "total": total, "loss": loss})


def _keep(job: TrainingJob, tokenizer: Any, task: TrainingTask, learner: Learner) -> dict[str, Any]:
    """Write an agent's adapter and merged weights, and return its measurements."""
    started = time.monotonic()
    adapter = task.folder / "adapter"
    learner.adapter.save(adapter)
    tokenizer.save_pretrained(str(adapter))
    merge(job.gguf, adapter, task.folder / "model.gguf", name=job.name)
    return {"losses": learner.losses, "tokens": learner.num_tokens, "merge_seconds": time.monotonic() - started}


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
