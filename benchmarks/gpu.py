"""The local stack on a GPU, against plain Transformers and a plain PEFT loop, in one run.

    python -m benchmarks.gpu [--device cuda] [--model MODEL] [--agents 2] [--repeats 3] [--demo] [--quick] [--json FILE]

Generation: prompts of about 190 tokens, replies limited to 16 to 128 tokens, greedy. Ours: `TransformersEngine`, all
requests at once from as many threads. Plain: `model.generate` in static batches of 32 in the given order, each as long
as its longest reply. Only tokens that a request asked for count.

Training: one epoch of LoRA with the default settings. Ours: `sirius_dspy.local.learning`, all agents in one pass.
Plain: a PEFT loop with batches in the given order, one agent after the other.

Each side loads its own model, warms up with one turn, and counts its best turn; loading is left out. Peak memory is
that of PyTorch's tensors on the GPU, with the weights; on a CPU it is not measured. `--demo` also runs the packaged
demo from start to end. `--quick` takes a tiny random model and few rows: it shows that all runs, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.local_engine import CopyStatement, pad, statements, training_row
from sirius_dspy.adapter import PlainAdapter
from sirius_dspy.local import LoraOptions, TransformersEngine
from sirius_dspy.local.chat import Chat, load_chat, no_progress_bars
from sirius_dspy.local.engine import GenerationOptions
from sirius_dspy.local.home import home
from sirius_dspy.local.lora import TokenRow
from sirius_dspy.local.models import find
from sirius_dspy.local.weights import Weights

STATIC_BATCH = 32
LIMITS = (16, 32, 48, 128)
"""Numbers of tokens that requests ask for, in turn."""


@dataclass(frozen=True)
class Request:
    """One prompt."""

    text: str
    max_tokens: int


@dataclass(frozen=True)
class Case:
    """What both sides work on."""

    weights: Weights
    chat: Chat
    device: str
    requests: Sequence[Request]
    rows: Sequence[TokenRow]
    options: LoraOptions
    repeats: int


@dataclass(frozen=True)
class Side:
    """The best turn of one side."""

    tokens_per_second: float
    peak_gib: float | None


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    agents: int
    ours: Side
    plain: Side

    @property
    def ratio(self) -> float:
        """Ours over plain."""
        return self.ours.tokens_per_second / self.plain.tokens_per_second


Prepared = tuple[Callable[[], int], Callable[[], None]]
"""A turn, which returns how many tokens it made, and what ends the side."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure the local stack on a GPU.")
    parser.add_argument("--device", help="`cuda`, `cuda:1`, `mps` or `cpu`; by default the first that there is")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as for `LocalLM`")
    parser.add_argument("--agents", type=int, default=2, help="number of agents where several are measured")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--demo", action="store_true", help="also run the demo from start to end")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        case = build_case(chosen, Path(scratch))
        lines = measure(case, chosen.agents)
        demo = run_demo(Path(scratch)) if chosen.demo else None
    machine = describe_device(case.device)
    print(show(lines, machine, case.weights.id))
    if demo:
        print(f"demo: {demo['zero_shot']:.0%} -> {demo['final']:.0%} exact answers in {demo['seconds_in_all']:.0f} s")
    if chosen.json:
        found = {"machine": machine, "model": case.weights.id, "lines": [asdict(line) for line in lines], "demo": demo}
        chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def build_case(chosen: argparse.Namespace, scratch: Path) -> Case:
    """Make the requests and rows."""
    from sirius_dspy.local.child import device

    weights = find(tiny_model(scratch) if chosen.quick else chosen.model)
    chat = load_chat(weights)
    num_requests, num_rows, told = (4, 4, 1) if chosen.quick else (128, 64, 26)

    def prompt(seed: int) -> str:
        example = statements(seed, told)
        inputs = {"context": example["context"], "question": example["question"]}
        return chat.prompt(PlainAdapter().format(CopyStatement, [], inputs))

    limits = [limit // 8 if chosen.quick else limit for limit in LIMITS]
    return Case(
        weights=weights,
        chat=chat,
        device=chosen.device or str(device()),
        requests=[Request(prompt(seed), limits[seed % len(limits)]) for seed in range(num_requests)],
        rows=[training_row(chat, statements(seed, 3 + seed % 5)) for seed in range(num_rows)],
        options=LoraOptions(epochs=1, stop_loss=0.0),
        repeats=1 if chosen.quick else chosen.repeats,
    )


def tiny_model(scratch: Path) -> Path:
    """Write a random model of a few kilobytes."""
    from tests.tiny_models import write_model

    return write_model(scratch / "tiny", "llama", max_position_embeddings=2048)


def measure(case: Case, agents: int) -> list[Line]:
    """Measure all sides, one after the other, since the memory of each is measured, too."""
    sides = {"generation": (our_generation, plain_generation), "training": (our_training, plain_training)}
    return [
        Line(what, number, *(best_turn(partial(side, case, number), case) for side in pair))
        for what, pair in sides.items()
        for number in sorted({1, agents})
    ]


def best_turn(prepare: Callable[[], Prepared], case: Case) -> Side:
    """Load a side, warm it up, and measure its turns."""
    import torch

    is_cuda = case.device.startswith("cuda")
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(case.device)
    turn, end = prepare()
    turn()
    speeds = []
    for _ in range(case.repeats):
        started = time.perf_counter()
        tokens = turn()
        if is_cuda:
            torch.cuda.synchronize(case.device)
        speeds.append(tokens / (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated(case.device) / 2**30 if is_cuda else None
    end()
    return Side(max(speeds), peak)


def our_generation(case: Case, agents: int) -> Prepared:
    """All requests of all agents at once."""
    engines = [TransformersEngine(case.weights, case.chat, device=case.device) for _ in range(agents)]
    work = [(engine, request) for request in case.requests for engine in engines]

    def answer(pair: tuple[TransformersEngine, Request]) -> int:
        engine, request = pair
        return engine.generate(request.text, GenerationOptions(request.max_tokens)).completion_tokens

    def turn() -> int:
        with ThreadPoolExecutor(len(work)) as threads:
            return sum(threads.map(answer, work))

    def end() -> None:
        for engine in engines:
            engine.close()

    return turn, end


def plain_generation(case: Case, agents: int) -> Prepared:
    """Static batches, one agent after the other."""
    from transformers import GenerationConfig

    from sirius_dspy.local.running import mark
    from sirius_dspy.local.running import pad as pad_left

    models = [load(case).eval() for _ in range(agents)]
    ends = sorted(case.chat.end_ids)

    def write(model: Any, batch: Sequence[Request]) -> int:
        prompts = [case.chat.encode(request.text) for request in batch]
        ids, mask = pad_left(prompts, ends[0], case.device), mark([*map(len, prompts)], case.device)
        longest = max(request.max_tokens for request in batch)
        config = GenerationConfig(max_new_tokens=longest, eos_token_id=ends, pad_token_id=ends[0], do_sample=False)
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        pairs = zip(written.tolist(), batch, strict=True)
        return sum(count_tokens(row, request.max_tokens, case.chat.end_ids) for row, request in pairs)

    def turn() -> int:
        starts = range(0, len(case.requests), STATIC_BATCH)
        return sum(write(model, case.requests[start : start + STATIC_BATCH]) for model in models for start in starts)

    return turn, models.clear


def count_tokens(row: Sequence[int], limit: int, ends: frozenset[int]) -> int:
    """Count the tokens that a request asked for: up to its limit, and up to the end of the reply."""
    asked = row[:limit]
    return next((place + 1 for place, token in enumerate(asked) if token in ends), len(asked))


def our_training(case: Case, agents: int) -> Prepared:
    """One epoch of all agents, in one pass over the same weights."""
    from sirius_dspy.local.learning import Learner, learn
    from sirius_dspy.local.passes import FittingPasses
    from sirius_dspy.local.train import add_adapters

    options = [case.options.replace({"seed": seed}) for seed in range(agents)]
    adapters, add = add_adapters(load(case), options)

    def turn() -> int:
        learners = [Learner(adapter, case.rows, lambda *_: None) for adapter in adapters]
        learn(learners, FittingPasses(add, print, case.device))
        return agents * sum(map(len, case.rows))

    return turn, lambda: None


def plain_training(case: Case, agents: int) -> Prepared:
    """One epoch of each agent, by the loop one would write by hand."""
    import torch
    from peft import LoraConfig, get_peft_model

    rank, alpha = case.options.rank, case.options.alpha
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = load(case)
    learner = get_peft_model(model, settings).train()
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    starts = range(0, len(case.rows), case.options.batch_size)
    batches = [pad(case.rows[start : start + case.options.batch_size], case.chat.end_id) for start in starts]
    is_bfloat16 = model.dtype == torch.bfloat16

    def turn() -> int:
        for _ in range(agents):
            optimizer = torch.optim.AdamW(weights, lr=case.options.learning_rate)
            for batch in batches:
                with torch.autocast(case.device.partition(":")[0], torch.bfloat16, enabled=is_bfloat16):
                    loss = learner(**{name: values.to(case.device) for name, values in batch.items()}).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return agents * sum(map(len, case.rows))

    return turn, lambda: None


def load(case: Case) -> Any:
    """Load the weights as the engine and the trainer do."""
    from sirius_dspy.local.train import load_model

    with no_progress_bars():
        return load_model(case.weights.path, home("training", case.weights.digits)).to(case.device)


def run_demo(scratch: Path) -> dict[str, Any]:
    """Run the packaged demo, on the device that `LocalLM` chooses."""
    from sirius_dspy.demo.run import run
    from sirius_dspy.local.serving import engines

    started = time.perf_counter()
    result = run(scratch / "demo")
    engines().close()
    return {**result.to_dict(), "seconds_in_all": time.perf_counter() - started}


def describe_device(device: str) -> str:
    """Name the device, and the versions that matter."""
    import torch

    from sirius_dspy.local.train import fast_precision

    name = f"{os.cpu_count()} CPU cores"
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device} ({name}), torch {torch.__version__}, {str(fast_precision()).removeprefix('torch.')}"


def show(lines: Sequence[Line], machine: str, model: str) -> str:
    """Lay the table out."""

    def memory(side: Side) -> str:
        return "-" if side.peak_gib is None else f"{side.peak_gib:.1f}"

    head = f"{'':12}{'agents':>7}{'tokens/s':>11}{'plain':>9}{'ratio':>8}{'peak GiB':>10}{'plain':>7}"
    body = [
        f"{line.what:12}{line.agents:>7}{line.ours.tokens_per_second:>11.0f}{line.plain.tokens_per_second:>9.0f}"
        f"{line.ratio:>8.2f}{memory(line.ours):>10}{memory(line.plain):>7}"
        for line in lines
    ]
    return "\n".join([machine, model, head, *body])


if __name__ == "__main__":
    main()
