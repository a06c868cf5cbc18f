"""The local stack against its own engines: what DSPy, the scheduler and the trainer cost.

    python benchmarks/local_engine.py [--repeats 3] [--json FILE]

Generation: 64 different prompts of about 190 tokens, 64 new tokens each, from 64 threads through `dspy.Predict` and
`LocalLM`, against the same requests put straight into an OpenVINO pipeline. Training: `sirius_dspy.local.train` against
a plain PEFT loop on the same rows, in the same precision, batch size and rank. The two sides take turns and the best
turn of each counts, because what else runs on the machine only ever slows a turn down. Then two agents in one pass
against one after the other, as steps and as whole jobs. The targets are ratios of at least 0.85, 2.0 and 1.5.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dspy

from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.local import LocalLM, LoraOptions
from sirius_dspy.local.chat import Chat, load_chat, no_progress_bars
from sirius_dspy.local.children import child_environment, end_idle
from sirius_dspy.local.home import home
from sirius_dspy.local.lora import TokenRow, to_tokens
from sirius_dspy.local.models import resolve
from sirius_dspy.local.openvino_engine import PRECISION
from sirius_dspy.local.provider import LocalProvider

NUM_PROMPTS = 64
NEW_TOKENS = 64
NAMES = ("Jazz", "Craig", "Orrin", "Leigh", "Kai", "Mo", "Ann", "Bob", "Cid", "Eve", "Fay", "Gus")
VERBS = ("adores", "resents", "likes", "eschews", "enjoys", "fears")
THINGS = ("trail running", "ballet", "wolves", "ping pong", "rain", "jazz", "chess", "soup", "trains", "kites")


class CopyStatement(dspy.Signature):  # type: ignore[metaclass]  # DSPy is not typed
    """Copy the statement that answers the question."""

    context: str = dspy.InputField()
    question: str = dspy.InputField()
    statement: str = dspy.OutputField()


@dataclass(frozen=True)
class Rate:
    """Tokens per second of the two sides, one number per repeat."""

    ours: list[float]
    reference: list[float]

    @property
    def ratio(self) -> float:
        """Best of ours over best of the reference."""
        return max(self.ours) / max(self.reference)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ours": self.ours, "reference": self.reference, "ratio": self.ratio}


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure the local stack against its own engines.")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)  # every reply is cut at NEW_TOKENS on purpose
    warnings.simplefilter("ignore")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.setdefault(name, child_environment()[name])  # as in the training process
    lm = LocalLM(max_tokens=NEW_TOKENS)
    generation = measure_generation(lm, arguments.repeats)
    print(f"generation: {_line(generation)} (target 0.85)")
    training, limits = measure_training(lm, arguments.repeats)
    print(f"training:   {_line(training)} (target 2.0)")
    together = measure_together(lm, arguments.repeats)
    print(f"two agents: {_line(together)} (in one pass, against one after the other)")
    jobs = measure_jobs(lm, arguments.repeats)
    print(f"two jobs:   {_line(jobs)} (with start, loading and merging; target 1.5)")
    print(
        f"machine:    {limits['peak_gflops']:.0f} GFLOP/s in {limits['precision']} matrix products; training uses "
        f"{limits['used_gflops']:.0f}, {limits['share']:.0%} of it"
    )
    if arguments.json:
        result = {
            "generation": generation.to_dict(),
            "training": training.to_dict(),
            "together": together.to_dict(),
            "jobs": jobs.to_dict(),
            "machine": limits,
        }
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _line(rate: Rate) -> str:
    return f"{max(rate.ours):.0f} tokens/s, reference {max(rate.reference):.0f}, ratio {rate.ratio:.2f}"


def statements(seed: int, count: int) -> dict[str, str]:
    """A context of `count` statements, a question about one of them, and that statement."""
    rng = random.Random(seed)
    told = [f"{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.choice(THINGS)}." for _ in range(count)]
    answer = rng.choice(told)
    question = f"Who {answer.split(' ', 1)[1].rstrip('.')}?"
    return {"context": " ".join(told), "question": question, "statement": answer}


def alternate(ours: Callable[[], float], reference: Callable[[], float], repeats: int) -> Rate:
    """One warm-up of each side, then turns."""
    ours()
    reference()
    turns = [(ours(), reference()) for _ in range(repeats)]
    return Rate([turn[0] for turn in turns], [turn[1] for turn in turns])


def measure_generation(lm: LocalLM, repeats: int) -> Rate:
    """Tokens per second through DSPy and straight from the pipeline."""
    examples = [statements(seed, 26) for seed in range(NUM_PROMPTS)]
    inputs = [{"context": example["context"], "question": example["question"]} for example in examples]
    chat = load_chat(resolve(lm.model))
    prompts = [chat.encode(chat.prompt(PlainAdapter().format(CopyStatement, [], values))) for values in inputs]
    pipeline = raw_pipeline(lm)
    try:
        reference = partial(through_pipeline, pipeline, prompts, chat)
        return alternate(partial(through_dspy, lm, inputs), reference, repeats)
    finally:
        lm.kill()


def through_dspy(lm: LocalLM, inputs: Sequence[dict[str, str]]) -> float:
    """Completion tokens per second of 64 threads that call one predictor."""
    predictor = dspy.Predict(CopyStatement)

    def call(values: dict[str, str]) -> int:
        with dspy.context(lm=lm, adapter=PlainAdapter(), track_usage=True, disable_history=True):
            usage = predictor(**values).get_lm_usage()
        return int(usage[lm.model]["completion_tokens"])

    with ThreadPoolExecutor(NUM_PROMPTS) as threads:
        started = time.perf_counter()
        tokens = sum(threads.map(call, inputs))
        return tokens / (time.perf_counter() - started)


def raw_pipeline(lm: LocalLM) -> Any:
    """OpenVINO with the settings of `OpenVINOEngine`."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = NUM_PROMPTS
    scheduler.cache_size = 1
    scheduler.enable_prefix_caching = True
    return openvino_genai.ContinuousBatchingPipeline(str(lm.path), scheduler, "CPU", PRECISION)


def through_pipeline(pipeline: Any, prompts: Sequence[list[int]], chat: Chat) -> float:
    """Completion tokens per second of the same requests with nothing around the pipeline."""
    import numpy as np
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = NEW_TOKENS
    config.eos_token_id = chat.end_id
    config.apply_chat_template = False
    started = time.perf_counter()
    handles = [
        pipeline.add_request(number, openvino_genai.openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        for number, ids in enumerate(prompts)
    ]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    tokens = sum(len(handle.read_all()[0].generated_ids) for handle in handles)
    return tokens / (time.perf_counter() - started)


def measure_training(lm: LocalLM, repeats: int) -> tuple[Rate, dict[str, Any]]:
    """Row tokens per second of our trainer and of a plain loop, and how that compares with the machine's limit."""
    chat = load_chat(resolve(lm.model))
    rows = [training_row(chat, statements(seed, 3 + seed % 5)) for seed in range(64)]
    options = LoraOptions(epochs=1)
    rate = alternate(
        lambda: with_our_trainer(lm, rows, options), lambda: with_plain_loop(lm, chat, rows, options), repeats
    )
    return rate, machine_share(lm, rows, max(rate.ours))


def measure_together(lm: LocalLM, repeats: int) -> Rate:
    """Row tokens per second of two agents in one pass, against one agent."""
    chat = load_chat(resolve(lm.model))
    rows = [training_row(chat, statements(seed, 3 + seed % 5)) for seed in range(32)]
    options = LoraOptions(epochs=1)
    both, one = (partial(with_our_trainer, lm, rows, options, agents) for agents in (2, 1))
    return alternate(both, one, repeats)


def training_row(chat: Chat, example: dict[str, str]) -> TokenRow:
    """The row of an example as tokens."""
    return to_tokens(chat, chat_row(example))


def chat_row(example: dict[str, str]) -> dict[str, Any]:
    """The row that DSPy would make of an example."""
    inputs = {"context": example["context"], "question": example["question"]}
    row = PlainAdapter().format_finetune_data(CopyStatement, [], inputs, {"statement": example["statement"]})
    return {"messages": row["messages"]}


def with_our_trainer(lm: LocalLM, rows: Sequence[TokenRow], options: LoraOptions, agents: int = 1) -> float:
    """Row tokens per second of one epoch of so many agents in one pass, loading left out."""
    from sirius_dspy.local.adapter import Adapter
    from sirius_dspy.local.decoder import Decoder
    from sirius_dspy.local.learning import Learner, add_gradients, learn

    decoder = Decoder(_model(lm))
    learners = [Learner(Adapter(decoder, options.replace({"seed": seed})), rows, _silent) for seed in range(agents)]
    started = time.perf_counter()
    learn(learners, partial(add_gradients, decoder))
    return agents * sum(map(len, rows)) / (time.perf_counter() - started)


def _silent(step: int, total: int, loss: float) -> None:
    """Show no progress."""


def measure_jobs(lm: LocalLM, repeats: int) -> Rate:
    """Row tokens per second of two agents in one job, against two jobs, each with its start, loading and merging."""
    chat = load_chat(resolve(lm.model))
    rows = [[chat_row(statements(100 * agent + seed, 3 + seed % 5)) for seed in range(48)] for agent in range(2)]
    options = {"epochs": 1, "stop_loss": 0}
    tokens = sum(len(to_tokens(chat, row)) for part in rows for row in part)

    def train(parts: Sequence[Sequence[Any]]) -> None:
        end_idle()  # a job that could go on in the process of the one before would have no start
        with tempfile.TemporaryDirectory() as scratch:
            settings = [{**options, "output_dir": f"{scratch}/{number}"} for number in range(len(parts))]
            LocalProvider().finetune_all(lm.model, parts, settings)

    def rate(jobs: Sequence[Sequence[Sequence[Any]]]) -> float:
        started = time.perf_counter()
        for parts in jobs:
            train(parts)
        return tokens / (time.perf_counter() - started)

    return alternate(lambda: rate([rows]), lambda: rate([[part] for part in rows]), repeats)


def with_plain_loop(lm: LocalLM, chat: Chat, rows: Sequence[TokenRow], options: LoraOptions) -> float:
    """The same by the loop one would write by hand: batches in the given order, the model's own loss."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = _model(lm)
    adapter = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    learner = get_peft_model(model, adapter).train()
    optimizer = torch.optim.AdamW((p for p in learner.parameters() if p.requires_grad), lr=options.learning_rate)
    started = time.perf_counter()
    for start in range(0, len(rows), options.batch_size):
        batch = pad(rows[start : start + options.batch_size], chat.end_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            loss = learner(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(map(len, rows)) / (time.perf_counter() - started)


def pad(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels`, each `(batch, time)`."""
    import torch

    width = max(map(len, rows))
    ids = [[*row.prompt, *row.completion] + [pad_id] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    labels = [[-100] * len(row.prompt) + [*row.completion] + [-100] * (width - len(row)) for row in rows]
    columns = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(values) for name, values in columns.items()}


def machine_share(lm: LocalLM, rows: Sequence[TokenRow], tokens_per_second: float) -> dict[str, Any]:
    """The arithmetic that training needs, against the machine's best matrix product.

    A frozen weight costs 2 operations per token forward and 2 backward (the gradient of its input; none of its own).
    The vocabulary head counts for completion tokens only; adapters and attention are left out, a few per cent.
    """
    import torch

    model = _model(lm)
    head = model.lm_head.weight.numel()
    body = sum(weight.numel() for name, weight in model.named_parameters() if "layers." in name and weight.ndim == 2)
    tokens, learnt = sum(map(len, rows)), sum(len(row.completion) for row in rows)
    used = 4 * (body + head * learnt / tokens) * tokens_per_second
    peak = best_matrix_product(model.dtype)
    return {
        "precision": str(model.dtype).removeprefix("torch."),
        "peak_gflops": peak / 1e9,
        "used_gflops": used / 1e9,
        "share": used / peak,
        "threads": torch.get_num_threads(),
    }


def best_matrix_product(dtype: Any, size: int = 2048) -> float:
    """Floating-point operations per second of the fastest of several square products."""
    import torch

    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def _model(lm: LocalLM) -> Any:
    from sirius_dspy.local.train import load_model

    weights = resolve(lm.model)
    with no_progress_bars():
        return load_model(weights.path, home("training", weights.digits))


if __name__ == "__main__":
    main()
