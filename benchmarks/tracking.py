"""What tracking with MLflow costs a compile: the same one with and without it.

    python -m benchmarks.tracking [--examples 250] [--samples 4] [--latency 0.1] [--repeats 3] [--uri URI]

A compile has one iteration: `--examples` x `--samples` rollouts of two agents on a scripted LM that takes `--latency`
seconds for an answer, two fine-tunes that memorize rows, and two validations on 125 examples. Both sides take turns
in one process, and the side that goes first alternates, so that a busy machine burdens both. Runs go to a SQLite
database in a temporary folder, unless `--uri` names a server. Importing mlflow and making its tables happen beforehand:
a process and a store pay for them once. Target: less than 3 % of the compile.

CPU seconds are of this process, all threads; with `--latency 0`, nothing else is to be waited for.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import dspy

from sirius_dspy import Collect, SiriuS
from sirius_dspy.mlflow import MLflowTracker
from sirius_dspy.testing import Prompt, ToyLM, chat_reply

TARGET = 0.03
ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats."""

    rollouts: int
    """On the trainset; those on the valset come on top."""
    latency_s: float
    """Of the LM, per answer."""
    plain_s: float
    """A compile without tracking."""
    added_s: float
    """Median of the differences of neighbouring compiles."""
    overhead: float
    """Median of `added_s / plain_s`."""
    plain_cpu_s: float
    added_cpu_s: float
    repeats: int


class Doubling(dspy.Module):
    """Two agents: one doubles a number, the other one formats it."""

    def __init__(self) -> None:
        super().__init__()
        self.doubler = dspy.Predict("number: int -> doubled")
        self.writer = dspy.Predict("doubled -> answer")

    def forward(self, number: int) -> dspy.Prediction:
        """The formatted answer."""
        return self.writer(doubled=self.doubler(number=number).doubled)


def skill(prompt: Prompt) -> str:
    """What the LM can do untrained: it fails on every fourth number."""
    if prompt.asks_for("doubled"):
        number = int(prompt.field("number") or 0)
        return chat_reply(doubled="no idea" if number % 4 == 3 else 2 * number)
    return chat_reply(answer=f"ans:{prompt.field('doubled')}")


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Whether the answer is right."""
    return bool(example.answer == prediction.answer)


def examples(count: int, *, start: int = 0) -> list[dspy.Example]:
    """Numbers and what their double looks like."""
    numbers = range(start, start + count)
    return [dspy.Example(number=number, answer=f"ans:{2 * number}").with_inputs("number") for number in numbers]


def compile_once(arguments: argparse.Namespace, tracker: MLflowTracker | None) -> tuple[float, float]:
    """Seconds, and CPU seconds, of one compile."""
    program = Doubling()
    program.set_lm(ToyLM(skill=skill, latency_s=arguments.latency))
    with tempfile.TemporaryDirectory(prefix="sirius-benchmark-") as folder:
        optimizer = SiriuS(
            metric,
            iterations=1,
            collect=Collect(samples=arguments.samples),
            augmenter=None,
            num_threads=arguments.threads,
            run_dir=folder,
            tracker=tracker,
        )
        gc.collect()
        began, cpu = time.perf_counter(), time.process_time()
        optimizer.compile(program, trainset=examples(arguments.examples), valset=examples(125, start=10_000))
        return time.perf_counter() - began, time.process_time() - cpu


def compile_tracked(arguments: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """The same with tracking."""
    tracker = MLflowTracker(tracking_uri=arguments.uri or f"sqlite:///{folder / 'mlflow.db'}", experiment="benchmark")
    result = compile_once(arguments, tracker)
    if tracker.not_logged:
        raise SystemExit(f"MLflow did not get everything: {tracker.not_logged}")
    return result


def measure(arguments: argparse.Namespace, folder: Path) -> Cost:
    """Take turns, and compare neighbours."""
    prepare(arguments, folder)
    pairs = [_pair(arguments, folder, swapped=turn % 2 == 1) for turn in range(arguments.repeats)]
    return Cost(
        rollouts=arguments.examples * arguments.samples,
        latency_s=arguments.latency,
        plain_s=statistics.median(plain[0] for plain, _ in pairs),
        added_s=statistics.median(tracked[0] - plain[0] for plain, tracked in pairs),
        overhead=statistics.median(tracked[0] / plain[0] - 1 for plain, tracked in pairs),
        plain_cpu_s=statistics.median(plain[1] for plain, _ in pairs),
        added_cpu_s=statistics.median(tracked[1] - plain[1] for plain, tracked in pairs),
        repeats=arguments.repeats,
    )


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Pay what a process and a store pay once: imports, tables, first uses."""
    import mlflow

    uri = arguments.uri or f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    if client.get_experiment_by_name("benchmark") is None:
        location = None if arguments.uri else (folder / "artifacts").as_uri()
        client.create_experiment("benchmark", artifact_location=location)
    small = argparse.Namespace(**{**vars(arguments), "examples": 4, "samples": 1, "latency": 0.0})
    compile_once(small, None)
    compile_tracked(small, folder)


def _pair(
    arguments: argparse.Namespace, folder: Path, *, swapped: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds and CPU seconds of (plain, tracked)."""
    if swapped:
        second = compile_tracked(arguments, folder)
        return compile_once(arguments, None), second
    return compile_once(arguments, None), compile_tracked(arguments, folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what tracking with MLflow adds to a compile.")
    parser.add_argument("--examples", type=int, default=250, help="of the trainset")
    parser.add_argument("--samples", type=int, default=4, help="rollouts per example")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds per answer of the LM")
    parser.add_argument("--threads", type=int, default=8, help="rollouts at a time")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of compiles")
    parser.add_argument("--uri", help="a tracking server, instead of a SQLite file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("dspy", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="sirius-benchmark-") as folder, dspy.context(adapter=ADAPTER):
        cost = measure(arguments, Path(folder))
    if arguments.json:
        print(json.dumps(asdict(cost)))
        return
    print(f"{cost.rollouts} rollouts, an LM of {cost.latency_s} s, medians of {cost.repeats} pairs of compiles")
    print(f"  without tracking  {cost.plain_s:8.2f} s   ({cost.plain_cpu_s:.2f} s of CPU)")
    print(f"  tracking adds     {cost.added_s:8.2f} s   ({cost.added_cpu_s:.2f} s of CPU)")
    print(f"  overhead          {cost.overhead:8.2%}     (target: below {TARGET:.0%})")


if __name__ == "__main__":
    main()
